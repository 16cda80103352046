"""The shape letters, defined once.

b study · c sequence · i j k voxel · p visual token · t text token · s sentence · e embedding · f finding.
x y z are never voxels: they are mm in RAS+ (x to the right, y to the front, z to the head).
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Volumes = Float[Tensor, "b c i j k"]
Acquired = Bool[Tensor, "b c"]
Affines = Float[Tensor, "b 4 4"]
LesionMasks = Int[Tensor, "b i j k"]
Embeddings = Float[Tensor, "b e"]
SequenceEmbeddings = Float[Tensor, "b c e"]
Scalar = Float[Tensor, ""]
