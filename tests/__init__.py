from cca_dynamics.runtime.machine import use_common_kernels

use_common_kernels()  # as the jobs of the workflow, before NumPy is imported
