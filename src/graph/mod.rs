//! Nodes, edges, cycles, closures and order. petgraph stays in here.
