use std::collections::VecDeque;
use std::path::Path;

use super::*;
use crate::engine::instruments;
use crate::engine::schedule::{Command, Limits, Scheduler};
use crate::graph::Graph;
use crate::plan::model::Workspace;
use crate::plan::workspace::LoadOptions;

fn shipped() -> Workspace {
    let options = LoadOptions {
        known_instruments: instruments::known(),
        ..LoadOptions::default()
    };
    Workspace::load(Path::new(env!("CARGO_MANIFEST_DIR")), &options)
        .unwrap_or_else(|error| panic!("{:#?}", error.diagnostics))
}

/// Runs a prepared problem with everything ending in the order in which it began.
fn starts(prepared: &Prepared) -> u64 {
    let limits = Limits {
        tasks: usize::MAX,
        hostless: 2,
    };
    let mut scheduler = Scheduler::new(prepared.problem.clone(), &prepared.inventory, limits);
    let mut under_way = VecDeque::new();
    loop {
        while let Some(task) = scheduler.next_undecided() {
            scheduler.admit(task);
        }
        under_way.extend(scheduler.commands());
        match under_way.pop_front() {
            None => break,
            Some(Command::Acquired(_)) => {}
            Some(Command::Start(service)) => scheduler.service_up(service),
            Some(Command::Stop(service)) => {
                scheduler.service_down(service);
            }
            Some(Command::Run(task)) => scheduler.finish(task),
        }
    }
    assert!(scheduler.is_over(), "it stalls");
    scheduler.starts()
}

#[test]
fn the_shipped_campaigns_start_every_distinct_service_once() {
    let workspace = shipped();
    let graph = Graph::build(&workspace).unwrap();
    for (package, hosts) in [("phase2", 2), ("phase1", 2)] {
        for dynamic_ports in [true, false] {
            let platform = Platform {
                dynamic_ports,
                ..workspace.platforms["sim"].clone()
            };
            let of_package = |node: &NodeId| graph.label(*node).package() == package;
            for adhoc in [false, true] {
                let chosen = graph.nodes().filter(of_package);
                let chosen = chosen.filter(|node| adhoc || !graph.pattern(*node).adhoc);
                let nodes: Vec<NodeId> = chosen.collect();
                let prepared = prepare(&graph, &platform, &nodes).unwrap();
                assert_eq!(prepared.inventory.host_count(), hosts);
                let distinct = prepared.services.len() as u64;
                assert!(distinct > 10, "{package} uses services");
                assert_eq!(starts(&prepared), distinct, "{package}, ad hoc: {adhoc}");
            }
        }
    }
}

#[test]
fn services_of_one_configuration_are_one_and_stand_on_each_other() {
    let workspace = shipped();
    let graph = Graph::build(&workspace).unwrap();
    let node = |name: &str| {
        graph
            .node(&format!("//phase2:{name}").parse().unwrap())
            .unwrap()
    };
    let nodes = ["p2-efa-1k-c1", "p2-efa-1k-c16", "p2-tcp-1k-c1"].map(node);
    let prepared = prepare(&graph, &workspace.platforms["sim"], &nodes).unwrap();
    let [first, second, third] = &prepared.tasks[..] else {
        panic!("three tasks");
    };
    assert_eq!(
        first.services, second.services,
        "the load is not the server's business"
    );
    assert!(
        first.services.iter().all(|s| !third.services.contains(s)),
        "the transport is"
    );
    assert_eq!(first.hosts, ["node1", "node2"]);
    let (_, proxy) = first
        .services
        .iter()
        .find(|(name, _)| name == "proxy")
        .unwrap();
    assert_eq!(prepared.problem.services[proxy.index()].after.len(), 2);
    let gpus: u32 = prepared
        .problem
        .services
        .iter()
        .flat_map(|s| &s.units)
        .map(|(_, n)| *n)
        .sum();
    assert_eq!(gpus, 4 * 4, "two pairs of servers, four GPUs each");
}
