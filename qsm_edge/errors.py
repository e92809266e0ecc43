"""Layer 0: everything that can go wrong, each with a stable reason code.

::

    QsmEdgeError                 .code .what .where .got .wanted
    |- UsageError                the caller asked for something that does not exist      exit 2
    |- InputRefused              the input is not what a map can be made from            exit 3
    |- ModelRefused              a network file or its card cannot be trusted            exit 3
    |- ResourceError             memory or disk would not do                             exit 3
    `- InternalError             a promise of ours was broken                            exit 1

A message says what, where, got and wanted, and never a patient's name. `REASONS` is the whole vocabulary: the codes are
part of the interface (scripts, the status page and the conformance statement use them), so none is ever renamed.
"""

from __future__ import annotations

REASONS: dict[str, str] = {
    # the call
    "unknown_name": "a method, option, recipe or stage of that name does not exist",
    "bad_value": "an option's value is out of its range or of the wrong type",
    "bad_call": "the command or function was called in a way that cannot work",
    # files
    "not_dicom": "the file is no DICOM object",
    "empty_file": "the file has no content",
    "truncated_file": "the file ends before its contents do",
    "unreadable_file": "the disk or the share does not give the file",
    "corrupt_header": "the header cannot be parsed, or contradicts itself",
    "too_large": "the object or its claimed size exceeds the limit for an untrusted file",
    "codec_missing": "the pixel data are compressed and the codec is not installed",
    "lossy_compression": "the pixel data were compressed with loss",
    "pixel_data_invalid": "the pixel data do not fit their description",
    "unsafe_uid": "a UID is empty, too long or not a UID",
    "unsafe_archive": "the archive would write outside its folder, or expands beyond the limit",
    # one instance or series that is no part of a usable acquisition
    "not_mr": "the object is no MR image",
    "own_output": "the object is our own output coming back",
    "derived_image": "the image was derived (a map, a projection, a reformat), not acquired",
    "field_map": "a B0 map in Hz is no phase image",
    "phase_difference": "a phase difference of two echoes is no phase of an echo",
    "filtered_phase": "the phase was high-pass filtered and its low frequencies are gone",
    "coil_uncombined": "the images of single coils were not combined",
    "mosaic": "the slices are tiled into a mosaic",
    "localizer": "the slices are a localizer or of mixed orientation",
    # an acquisition
    "no_phase": "there are magnitude images but no phase images for them",
    "no_magnitude": "there are phase images but no magnitude images for them",
    "no_imaginary": "of the real and the imaginary images one kind is missing",
    "unknown_component": "it cannot be told whether the images are magnitude, phase, real or imaginary",
    "unknown_phase_scale": "it cannot be told what the phase values mean in radians",
    "unknown_phase_sign": "it is not known which way the phase of this scanner turns",
    "vertical_field": "the main field of this scanner does not run along its bore",
    "phase_constant": "the phase images hold no phase",
    "phase_unwrapped": "the phase was unwrapped or processed before",
    "chop_undecided": "it cannot be told from the data whether every second slice is negated",
    "missing_slice": "a slice is missing",
    "doubled_slice": "two different images claim the same slice, echo and component",
    "same_uid_other_pixels": "two files share a UID and differ in their pixels",
    "missing_echo": "an echo is missing or its images are incomplete",
    "uneven_gaps": "the slices are not evenly spaced",
    "bad_geometry": "position, orientation or spacing is missing, degenerate or contradictory",
    "geometry_mismatch": "magnitude and phase, or the echoes, do not share one grid",
    "bad_echo_time": "an echo time is missing, not positive, or not distinct",
    "bad_field_strength": "the field strength is missing or implausible",
    "bad_rescale": "a rescale slope or intercept is not a usable number",
    "two_patients": "the images of one acquisition name two patients",
    "two_acquisitions": "one series holds two acquisitions that cannot be told apart",
    "mixed_distortion_correction": "distortion-corrected and uncorrected images are mixed",
    "too_small": "the volume is too small to reconstruct",
    "not_gre": "the images are not from a gradient-echo sequence",
    # mask, model, resources
    "mask_grid": "the mask does not lie on the grid of the images",
    "mask_empty": "the mask is empty",
    "mask_invalid": "the mask file cannot be used",
    "no_model": "no mask network is installed",
    "model_checksum": "the network file does not match the checksum on its card",
    "model_card": "the network's card is missing or does not say what it must",
    "model_foreign": "the network's inputs, outputs or opset are not those of a mask network",
    "out_of_memory": "the reconstruction would need more memory than there is",
    "out_of_disk": "there is no room for the output",
    "no_device": "the requested device is not there",
    "timed_out": "it took longer than its limit and was ended",
    # the service
    "watch_missing": "a watched folder is not there",
    "ledger_unwritable": "the spool's ledger cannot be written to",
    "part_stopped": "a part of the service has ended or does not come back",
    # the MRD stream of a scanner
    "raw_data": "k-space data were sent, which nothing is reconstructed from here",
    "bad_message": "the stream breaks the MRD protocol, or is another one",
    "stream_ended": "the connection ended or fell silent before everything had come",
    # warnings that go with a result (never raised)
    "single_echo": "one echo: the phase offset cannot be told from the field",
    "offset_correction": "odd and even echoes differ by a phase offset (bipolar read-out); it was fitted and removed",
    "strong_sources": "a bleed or the like lost its signal, and was read from the field about it",
    "map_needs_echoes": "a map of the decay needs two echoes or more and was left out",
    "values_clipped": "some values did not fit into the output's range",
    "mask_by_threshold": "the mask was made without a network and should be looked at",
    "mask_touches_edge": "the mask touches the edge of the volume",
    "mask_implausible": "the mask's volume is not that of a brain",
    "chi_implausible": "the susceptibilities spread far wider, or far less, than those of a brain",
    "low_snr": "the signal is weak compared with its noise",
    "high_residual": "the echoes do not fit a single frequency in many voxels",
    "sign_suspect": "veins and deep grey matter are not brighter than their surroundings: the phase sign may be wrong",
    "many_unreliable": "a large share of the mask carries no reliable phase",
    "network_fallback": "the network could not be used and another way was taken",
    "mask_uncertain": "the mask network is unsure of the edge of the brain",
    "device_fallback": "the accelerator could not be used and the computation ran on the CPU",
    "duplicate_dropped": "identical copies of an image were dropped",
    "internal": "an internal error",
}


class QsmEdgeError(Exception):
    """Base of all errors: a reason `code` out of `REASONS`, and what, where, got and wanted as text."""

    exit_status = 1

    def __init__(self, code: str, what: str = "", *, where: str = "", got: object = "", wanted: object = "") -> None:
        if code not in REASONS:
            raise ValueError(f"unknown reason code {code!r}")
        self.code, self.what, self.where = code, what or REASONS[code], where
        self.got, self.wanted = str(got), str(wanted)
        super().__init__(code, self.what)

    def __str__(self) -> str:
        parts = [f"[{self.code}] {self.what}"]
        parts += [f"{k}: {v}" for k, v in (("where", self.where), ("got", self.got), ("wanted", self.wanted)) if v]
        return "; ".join(parts)

    def as_dict(self) -> dict[str, str]:
        """The same facts for JSON."""
        return dict(code=self.code, what=self.what, where=self.where, got=self.got, wanted=self.wanted)


class UsageError(QsmEdgeError):
    """The caller asked for something that does not exist or cannot work."""

    exit_status = 2


class InputRefused(QsmEdgeError):
    """The input is not what a susceptibility map can be made from; other acquisitions go on."""

    exit_status = 3


class ModelRefused(InputRefused):
    """A network file or its card cannot be trusted."""


class ResourceError(QsmEdgeError):
    """Memory, disk or device would not do; says how much is needed and how much there is."""

    exit_status = 3


class InternalError(QsmEdgeError):
    """A promise of ours was broken."""
