//! Decides what must run, runs it, and keeps every result: decide (pure), schedule, services, resources, interrupt.
