//! Events (schema v1) and their readers.
