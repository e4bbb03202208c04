"""What is measured, and beside whom; the protocol is `ddpm_deploy.bench`."""

import os

# How long PyTorch's threads spin before they sleep, some tenths of a millisecond; read once, when it is loaded. Asleep
# between two operators they would cost a small network more than its operators do; spinning on after a call, they would
# take a core from whatever is timed next. `ddpm_deploy.backends.onnxruntime.spin_briefly` does it for ONNX Runtime.
os.environ["GOMP_SPINCOUNT"] = "30000"
