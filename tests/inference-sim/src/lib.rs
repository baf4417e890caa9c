//! A serving stack with known true joules per request; tests only.
