use super::*;

/// The instruments that the shipped rules call, as far as these tests care.
const SHIPPED: &[&str] = &[
    "measure openai",
    "proxy",
    "analyze tpot-separation",
    "analyze bimodality",
    "analyze proxy-overhead",
    "parse fi_info",
    "parse fi_rdm_bw",
    "parse fi_pingpong",
    "parse fi_rdm_pingpong",
    "parse iperf3",
    "parse nccl-tests",
    "parse nvidia-smi",
    "parse nixlbench",
    "parse kvbench",
    "parse ucx_perftest",
];

fn shipped() -> Rules {
    let files = [
        ("network", include_str!("../../../rules/network.toml")),
        ("serving", include_str!("../../../rules/serving.toml")),
        ("analysis", include_str!("../../../rules/analysis.toml")),
    ];
    let names: Vec<_> = files
        .iter()
        .map(|(stem, _)| format!("rules/{stem}.toml"))
        .collect();
    let files: Vec<_> = (files.iter().zip(&names))
        .map(|((stem, text), name)| RuleFile { name, stem, text })
        .collect();
    let (rules, diags) = load_texts(&files, SHIPPED);
    assert_eq!(lines(&diags), "");
    rules
}

#[test]
fn every_shipped_rule_loads_without_a_finding() {
    let rules = shipped();
    let ids: Vec<_> = rules.keys().map(|id| id.0.as_str()).collect();
    assert!(
        ids.contains(&"serving.unified") && ids.contains(&"network.kvbench"),
        "{ids:?}"
    );
    for rule in rules.values() {
        assert!(
            !rule.instruments.is_empty(),
            "{} calls no instrument",
            rule.id
        );
    }
}
