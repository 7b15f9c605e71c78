"""Names that several modules of the plugin, and users' configuration files, refer to."""

INR_HOME = "INR_HOME"
INR_ENV_ACTIVATION = "INR_ENV_ACTIVATION"
INR_SOURCE = "INR_SOURCE"

ENGINE = "inrtomo"
ENGINE_VERSION = "0.1.0"

TILT_SERIES = "TiltSeries"
TOMOGRAMS = "Tomograms"
FAILED = "FailedTiltSeries"
FSCS = "FSCs"
