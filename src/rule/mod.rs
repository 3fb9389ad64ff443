//! Rule files: typed parameters, strict templates, rendering to actions.
