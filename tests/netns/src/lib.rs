//! Shared set-up of this suite.
