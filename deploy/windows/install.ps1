# Makes qsm-edge serve a task that starts with Windows, without a login, as LOCAL SERVICE. Run in an elevated PowerShell.
#   powershell -ExecutionPolicy Bypass -File deploy\windows\install.ps1 -Wheelhouse dist\wheelhouse
# Not run here: written after the documentation of ScheduledTasks, icacls and pip.
param(
  [Parameter(Mandatory = $true)][string]$Wheelhouse,
  [string]$Target = "$env:ProgramFiles\qsm-edge",
  [string]$State = "$env:ProgramData\qsm-edge",
  [string]$Python = "py"
)
$ErrorActionPreference = "Stop"
function Invoke-Checked([string]$Program, [string[]]$Arguments) {
  & $Program @Arguments
  if ($LASTEXITCODE -ne 0) { throw "$Program ended with status $LASTEXITCODE" }
}

Invoke-Checked $Python @("-m", "venv", $Target)
Invoke-Checked "$Target\Scripts\python.exe" @("-I", "-m", "pip", "--isolated", "install", "--no-index", "--require-hashes",
  "--only-binary", ":all:", "--find-links", $Wheelhouse, "-r", "$Wheelhouse\requirements.txt")

# Spool and configuration are for the service and for administrators; S-1-5-19 is LOCAL SERVICE in every language.
New-Item -ItemType Directory -Force $State | Out-Null
Invoke-Checked "icacls.exe" @($State, "/inheritance:r", "/grant", "*S-1-5-19:(OI)(CI)M", "*S-1-5-32-544:(OI)(CI)F", "*S-1-5-18:(OI)(CI)F")
$Site = "$State\site.toml"
if (-not (Test-Path $Site)) { Copy-Item "$PSScriptRoot\..\site.example.toml" $Site }

$Action = New-ScheduledTaskAction -Execute "$Target\Scripts\qsm-edge.exe" -Argument "serve --config `"$Site`"" -WorkingDirectory $State
$Trigger = New-ScheduledTaskTrigger -AtStartup
$Settings = New-ScheduledTaskSettingsSet -ExecutionTimeLimit ([TimeSpan]::Zero) -RestartCount 999 `
  -RestartInterval (New-TimeSpan -Minutes 1) -MultipleInstances IgnoreNew -StartWhenAvailable `
  -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries
$Principal = New-ScheduledTaskPrincipal -UserId "S-1-5-19" -LogonType ServiceAccount -RunLevel Limited
Register-ScheduledTask -TaskName "qsm-edge" -Action $Action -Trigger $Trigger -Settings $Settings -Principal $Principal -Force | Out-Null
Write-Output "edit $Site (the spool: a folder below $State), then: Start-ScheduledTask qsm-edge"
