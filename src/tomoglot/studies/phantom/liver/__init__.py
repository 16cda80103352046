"""The simulated liver: a parametric torso, contrast that comes and goes by tracer kinetics, seven kinds of lesion."""
