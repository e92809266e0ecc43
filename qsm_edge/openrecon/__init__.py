"""Siemens OpenRecon: images by the MR Data (MRD, ISMRMRD) streaming protocol in, susceptibility images by it out.

    command    `qsm-edge mrd`
    server     the door: accepts, hands each connection to a process of its own, and outlives all of them
    session    one connection in its process: receive, reconstruct, answer
    wire       messages on a socket, under limits of size and time
    mrd        the only file that says "ismrmrd": fixed headers and attributes
    header     what the stream's XML header tells of the acquisition
    parameters what the console's fields ask for
    collect    MRD images -> one acquisition on a grid -> GreSeries
    answer     susceptibility -> MRD images

Completeness, geometry and phase scale are judged by the code that judges DICOM (`dicom.grid`, `dicom.signal`), and refused
with the same codes.
"""
