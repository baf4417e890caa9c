//! System calls by class.
