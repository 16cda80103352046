"""Features to scalars: pure functions of tensors that know no model."""
