//! A stand-in libnvidia-ml.so.1 for machines without a GPU; tests only.
