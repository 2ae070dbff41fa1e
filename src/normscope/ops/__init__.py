"""Operations on tensors, with forward, backward and tangent written out. The one door to the mathematics."""
