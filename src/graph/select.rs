//! Selectors held against the graph: a list of nodes in file order without duplicates, or an
//! error that names the nearest label.

use std::collections::BTreeSet;

use super::{Graph, NodeId};
use crate::error::{Error, Kind, Result, nearest};
use crate::label::{Label, Selector, Target};
use crate::plan::model::Layer;

/// Answers what only the store knows.
pub trait Oracle {
    /// The nodes that failed, were invalid or were blocked when they last took part in a run.
    fn failed(&self) -> Result<BTreeSet<NodeId>>;
    /// The nodes that would run again.
    fn stale(&self) -> Result<BTreeSet<NodeId>>;
}

/// The nodes that a list of selectors names. Each selector is applied in turn to what stands so
/// far; a list that begins with a subtraction starts from everything that `:all` would take.
pub fn select(
    graph: &Graph<'_>,
    selectors: &[Selector],
    oracle: &dyn Oracle,
) -> Result<Vec<NodeId>> {
    let mut chosen: BTreeSet<NodeId> = BTreeSet::new();
    if selectors.first().is_some_and(|s| s.subtract) {
        chosen.extend(graph.nodes().filter(|&n| !graph.pattern(n).adhoc));
    }
    for selector in selectors {
        let found = matching(graph, &selector.target, oracle)?;
        if selector.subtract {
            for node in found {
                chosen.remove(&node);
            }
        } else {
            chosen.extend(found);
        }
    }
    Ok(chosen.into_iter().collect())
}

fn matching(graph: &Graph<'_>, target: &Target, oracle: &dyn Oracle) -> Result<Vec<NodeId>> {
    let filter = |keep: &dyn Fn(NodeId) -> bool| graph.nodes().filter(|&n| keep(n)).collect();
    match target {
        Target::Name(label) => named(graph, label),
        Target::All(package) => {
            if !graph.workspace().plans.contains_key(&**package) {
                return Err(no_package(graph, package));
            }
            Ok(filter(&|n| {
                graph.label(n).package() == &**package && !graph.pattern(n).adhoc
            }))
        }
        Target::Below(prefix) => {
            let inside = |package: &str| target.has_whole(package);
            if !prefix.is_empty() && !graph.workspace().plans.keys().any(|p| inside(p)) {
                return Err(no_package(graph, prefix));
            }
            Ok(filter(&|n| inside(graph.label(n).package())))
        }
        Target::Tag(tag) => {
            let found: Vec<NodeId> = filter(&|n| graph.pattern(n).tags.contains(&**tag));
            if found.is_empty() {
                return Err(no_tag(graph, tag));
            }
            Ok(found)
        }
        Target::Failed => Ok(oracle.failed()?.into_iter().collect()),
        Target::Stale => Ok(oracle.stale()?.into_iter().collect()),
    }
}

fn named(graph: &Graph<'_>, label: &Label) -> Result<Vec<NodeId>> {
    if let Some(node) = graph.node(label) {
        // A pattern's name means all of its replicates, which stand behind it.
        let behind = graph.nodes().skip(node.index() + 1);
        let further = behind.take_while(|&other| {
            let other = graph.label(other);
            other.base_name() == label.name() && other.package() == label.package()
        });
        return Ok(std::iter::once(node).chain(further).collect());
    }
    if label.name().ends_with("@1")
        && let Some(node) = graph.node(&label.replicate(1))
    {
        return Ok(vec![node]);
    }
    let Some(plan) = graph.workspace().plans.get(label.package()) else {
        return Err(no_package(graph, label.package()));
    };
    let layer = plan.layers.iter().position(|layer| {
        layer.label.name() == label.name() || layer.alias.as_deref() == Some(label.name())
    });
    if let Some(layer) = layer {
        return Ok(graph
            .nodes()
            .filter(|&n| {
                graph.label(n).package() == label.package() && graph.pattern(n).layer == layer
            })
            .collect());
    }
    let full = |names: &[&str]| {
        let names = names
            .iter()
            .map(|name| format!("`//{}:{name}`", label.package()));
        names.collect::<Vec<_>>().join(" or ")
    };
    let meant = plan.layers_called(label.name());
    if meant.len() > 1 {
        return Err(Error::new(
            Kind::Usage,
            "ambiguous-label",
            format!(
                "`{label}` is ambiguous: it could be any of layers {}",
                meant.join(", ")
            ),
        )
        .hint(format!("write {}", full(&meant))));
    }
    let shorts = plan.layers.iter().filter_map(Layer::short);
    let names = (plan.layers.iter().map(|l| l.label.name()))
        .chain(plan.patterns.iter().map(|p| p.label.name()))
        .chain(shorts)
        .chain(["all"]);
    let mut error = Error::new(
        Kind::Usage,
        "unknown-label",
        format!("there is no `{}` in `//{}`", label.name(), label.package()),
    );
    if let Some(near) = nearest(label.name(), names) {
        // A short name that several layers share would only be the next mistake.
        let meant = match plan.layers_called(near) {
            layers if layers.len() > 1 => layers,
            _ => vec![near],
        };
        error = error.hint(format!("did you mean {}?", full(&meant)));
    }
    let layers: Vec<_> = plan.layers.iter().map(|l| l.label.name()).collect();
    Err(error
        .hint(format!(
            "layers of `//{}`: {}",
            label.package(),
            layers.join(", ")
        ))
        .hint(format!(
            "`doe list //{}/...` shows every label",
            label.package()
        )))
}

fn no_package(graph: &Graph<'_>, package: &str) -> Error {
    let names = graph.workspace().plans.keys().map(String::as_str);
    let mut error = Error::new(
        Kind::Usage,
        "unknown-package",
        format!("there is no plan `//{package}`"),
    );
    if let Some(near) = nearest(package, names.clone()) {
        error = error.hint(format!("did you mean `//{near}`?"));
    }
    let all: Vec<_> = names.map(|n| format!("//{n}")).collect();
    error.hint(format!("plans in this workspace: {}", all.join(", ")))
}

fn no_tag(graph: &Graph<'_>, tag: &str) -> Error {
    let tags: BTreeSet<&str> = graph
        .nodes()
        .flat_map(|n| graph.pattern(n).tags.iter().map(String::as_str))
        .collect();
    let mut error = Error::new(
        Kind::Usage,
        "unknown-tag",
        format!("nothing carries the tag `#{tag}`"),
    );
    if let Some(near) = nearest(tag, tags.iter().copied()) {
        error = error.hint(format!("did you mean `#{near}`?"));
    }
    error
}
