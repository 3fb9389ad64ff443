//! The graph of patterns. Every node has a dense id, every edge points from what is needed to
//! what needs it, and a `Graph` that exists has no cycle. petgraph stays in here.

mod build;
mod select;

pub use build::Graph;
pub use select::{Oracle, select};

/// A vertex: dense, in order of plan and pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl NodeId {
    /// Position in tables that have one entry a node.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What an edge means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EdgeKind {
    /// The outputs of the first enter the key of the second.
    Data,
    /// The first must have succeeded and met its expectations; nothing of it enters the key.
    Gate,
    /// The first is an earlier replicate of the second, and says whether that is needed at all.
    Series,
}
