use super::*;
use crate::rule::action::{Binding, Probe, RealBinding, RoleBinding};
use crate::rule::model::{ParamType, RuleId};
use crate::rule::render::render;
use crate::rule::{params, settings};

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
fn the_shipped_probes_load_without_a_finding() {
    let file = RuleFile {
        name: "rules/hosts.toml",
        stem: "hosts",
        text: include_str!("../../../rules/hosts.toml"),
    };
    let loaded = crate::rule::load::load_all(&[file], SHIPPED);
    assert_eq!(lines(&loaded.diags), "");
    let ids: Vec<_> = loaded.probes.keys().map(|id| id.0.as_str()).collect();
    assert_eq!(ids, ["hosts.gpu", "hosts.host"]);
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

fn serving(transport: &str) -> BTreeMap<String, Value> {
    let rules = shipped();
    let rule = &rules[&RuleId("serving.disaggregated".into())];
    let given = pairs(&[
        ("model", Value::Str("Qwen/Qwen2.5-32B-Instruct".into())),
        ("max_model_len", Value::Int(32896)),
        ("prompt_tokens", Value::Int(4096)),
        ("concurrency", Value::Int(4)),
        ("transport", Value::Str(transport.into())),
        (
            "extra_args",
            Value::List(vec![
                Value::Str("--seed".into()),
                Value::Str("it's 7".into()),
            ]),
        ),
    ]);
    (rule.params.iter())
        .map(|(name, param)| {
            let value = given.get(name).or(param.default.as_ref()).expect(name);
            (
                name.clone(),
                params::check(name, param, value, None).unwrap(),
            )
        })
        .collect()
}

fn real() -> RealBinding {
    let place = |host: &str, ip: &str| RoleBinding {
        host: host.into(),
        ip: ip.into(),
    };
    let port = |part: &str, name: &str, number| ((part.to_owned(), name.to_owned()), number);
    RealBinding {
        roles: [
            ("prefill".into(), place("node1", "127.0.0.1")),
            ("client".into(), place("node1", "127.0.0.1")),
            ("decode".into(), place("node2", "127.0.0.2")),
        ]
        .into(),
        ports: [
            port("prefill", "http", 40001),
            port("prefill", "side", 40002),
            port("decode", "http", 40003),
            port("decode", "side", 40004),
            port("proxy", "http", 40005),
        ]
        .into(),
        work: "/tmp/my work".into(),
        inputs: String::new(),
        session: "s-1".into(),
        doe: "/opt/d o e/doe".into(),
    }
}

#[test]
fn a_disaggregated_pattern_renders() {
    let rules = shipped();
    let rule = &rules[&RuleId("serving.disaggregated".into())];
    let action = render(rule, &serving("efa"), &Binding::Symbolic).unwrap();
    let names: Vec<_> = action.services.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["prefill", "decode", "proxy"]);
    assert_eq!(action.services[1].gpus, 4);
    assert_eq!(action.services[2].gpus, 0);
    assert_eq!(action.steps[0].timeout_s, 4.0 * 3600.0);
    assert_eq!(action.outputs[0].role.as_deref(), Some("client"));
    assert_eq!(
        action.services[2].ready.probe,
        Probe::Http("http://@client.ip@:@service.proxy.port.http@/health".into())
    );
    insta::assert_snapshot!(action.services[1].script, @r#"
    exec vllm serve Qwen/Qwen2.5-32B-Instruct --host @decode.ip@ --port @service.decode.port.http@  --trust-remote-code --disable-log-requests --dtype auto --tensor-parallel-size 4 --gpu-memory-utilization 0.9 --max-num-batched-tokens 4096 --max-model-len 32896 --enable-chunked-prefill --enforce-eager --no-enable-prefix-caching  --kv-transfer-config '{"kv_buffer_device":"cpu","kv_buffer_size":5000000000,"kv_connector":"NixlConnector","kv_connector_extra_config":{"backends":["UCX"],"enable_cross_layers_blocks":"False"},"kv_ip":"@decode.ip@","kv_parallel_size":2,"kv_rank":1,"kv_role":"kv_consumer"}' --seed 'it'\''s 7'
    "#);
    insta::assert_snapshot!(action.steps[0].script, @r#"
    doe measure openai --url http://@client.ip@:@service.proxy.port.http@ --endpoint completions --model Qwen/Qwen2.5-32B-Instruct --prompt-tokens 4096 --max-tokens 128 --warmup-iterations 10 --iterations 30 --concurrency 4 --temperature 0 --ignore-eos --seed 20260301 --pause 0s --request-timeout 600s --session @session@ --out @out.result@ --proxy-stats http://@client.ip@:@service.proxy.port.http@/stats --proxy-out @out.proxy@
    "#);
    insta::assert_debug_snapshot!(action.services[1].env, @r#"
    {
        "LD_PRELOAD": "/usr/lib/x86_64-linux-gnu/libibverbs.so.1",
        "NCCL_DEBUG": "WARN",
        "NCCL_IB_DISABLE": "0",
        "NIXL_BACKEND": "UCX",
        "NIXL_LOG_LEVEL": "INFO",
        "UCX_NET_DEVICES": "all",
        "UCX_TLS": "srd,self,sm",
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "@decode.ip@",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": "@service.decode.port.side@",
    }
    "#);
    let tcp = render(rule, &serving("tcp"), &Binding::Symbolic).unwrap();
    insta::assert_debug_snapshot!(tcp.services[1].env, @r#"
    {
        "NCCL_DEBUG": "WARN",
        "NCCL_IB_DISABLE": "0",
        "NIXL_BACKEND": "UCX",
        "NIXL_LOG_LEVEL": "INFO",
        "UCX_TLS": "tcp,self,sm",
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "@decode.ip@",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": "@service.decode.port.side@",
    }
    "#);
    assert_eq!(tcp.services[1].script, action.services[1].script);
}

#[test]
fn a_real_binding_differs_in_places_only() {
    let rules = shipped();
    let rule = &rules[&RuleId("serving.disaggregated".into())];
    let symbolic = render(rule, &serving("efa"), &Binding::Symbolic).unwrap();
    let action = render(rule, &serving("efa"), &Binding::Real(real())).unwrap();
    insta::assert_snapshot!(action.steps[0].script, @r#"
    '/opt/d o e/doe' measure openai --url http://127.0.0.1:40005 --endpoint completions --model Qwen/Qwen2.5-32B-Instruct --prompt-tokens 4096 --max-tokens 128 --warmup-iterations 10 --iterations 30 --concurrency 4 --temperature 0 --ignore-eos --seed 20260301 --pause 0s --request-timeout 600s --session s-1 --out '/tmp/my work/result.json' --proxy-stats http://127.0.0.1:40005/stats --proxy-out '/tmp/my work/proxy.json'
    "#);
    insta::assert_snapshot!(action.services[2].script, @r#"
    exec '/opt/d o e/doe' proxy --listen 127.0.0.1:40005 --prefill http://127.0.0.1:40001 --decode http://127.0.0.2:40003
    "#);
    let mut script = symbolic.steps[0].script.clone();
    for (symbol, place) in [
        ("@client.ip@", "127.0.0.1"),
        ("@service.proxy.port.http@", "40005"),
        ("@session@", "s-1"),
        ("@out.result@", "'/tmp/my work/result.json'"),
        ("@out.proxy@", "'/tmp/my work/proxy.json'"),
        ("doe measure", "'/opt/d o e/doe' measure"),
    ] {
        assert!(script.contains(symbol), "{symbol}");
        script = script.replace(symbol, place);
    }
    assert_eq!(script, action.steps[0].script);
}

#[test]
fn an_unbound_role_is_told() {
    let rules = shipped();
    let rule = &rules[&RuleId("serving.disaggregated".into())];
    let mut binding = real();
    binding.roles.remove("decode");
    let error = render(rule, &serving("efa"), &Binding::Real(binding)).unwrap_err();
    assert_eq!(error.diagnostics[0].code, "unbound-role");
    assert!(error.diagnostics[0].message.contains("`decode`"));
}

#[test]
fn requirements_are_held_against_settings() {
    let rules = shipped();
    let rule = &rules[&RuleId("serving.disaggregated".into())];
    let mut settings = serving("tcp");
    assert_eq!(settings::unmet(rule, &settings), []);
    settings.insert("prompt_tokens".into(), Value::Int(40000));
    settings.insert("nixl_backend".into(), Value::Str("LIBFABRIC".into()));
    let unmet = settings::unmet(rule, &settings);
    let reasons: Vec<_> = (unmet.iter())
        .map(|d| d.message.split(':').next().unwrap())
        .collect();
    assert_eq!(
        reasons,
        [
            "prompt and output must fit the context",
            "a prompt beyond the positions the model was trained for needs `rope_scaling`",
            "NIXL's LIBFABRIC backend is used over EFA only; TCP goes through UCX",
        ]
    );
    assert_eq!(
        unmet[0].hints,
        ["here max_model_len = 32896, max_tokens = 128, prompt_tokens = 40000"]
    );
    assert_eq!(unmet[0].code, "requirement-broken");
    settings.insert("nixl_backend".into(), Value::Str("UCX".into()));
    settings.insert("max_model_len".into(), Value::Int(40128));
    let rope = [("factor".to_owned(), Value::Int(4))];
    settings.insert("rope_scaling".into(), Value::Map(rope.into()));
    assert_eq!(settings::unmet(rule, &settings), []);
}

#[test]
fn every_shipped_rule_renders_with_any_settings_it_allows() {
    for rule in shipped().values() {
        let settings: BTreeMap<_, _> = (rule.params.iter())
            .map(|(name, param)| {
                let value = param.default.clone().unwrap_or_else(|| match &param.ty {
                    ParamType::Int { min, .. } => Value::Int(min.unwrap_or(1)),
                    ParamType::Enum { of } => Value::Str(of[0].clone()),
                    ParamType::Str { .. } => Value::Str("a b'c".into()),
                    other => panic!("{name}: {other:?} without a default"),
                });
                (
                    name.clone(),
                    params::check(name, param, &value, None).unwrap(),
                )
            })
            .collect();
        let action = render(rule, &settings, &Binding::Symbolic)
            .unwrap_or_else(|error| panic!("{}: {}", rule.id, lines(&error.diagnostics)));
        assert!(!action.steps.is_empty());
        for script in action
            .steps
            .iter()
            .map(|s| &s.script)
            .chain(action.services.iter().map(|s| &s.script))
        {
            let status = std::process::Command::new("sh")
                .args(["-n", "-c", script])
                .status()
                .unwrap();
            assert!(status.success(), "{}:\n{script}", rule.id);
        }
    }
}

/// The examples of the documentation, each a file of its own.
#[test]
fn documented_rules_load() {
    let docs = include_str!("../../../docs/rules.md");
    let blocks: Vec<&str> = (docs.split("```toml\n").skip(1))
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert!(blocks.len() >= 9);
    let files: Vec<RuleFile<'_>> = (blocks.iter())
        .map(|text| {
            let table = &text[text.find('[').unwrap() + 1..];
            RuleFile {
                name: "docs/rules.md",
                stem: &table[..table.find(']').unwrap()],
                text,
            }
        })
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    for file in &files {
        let others = files
            .iter()
            .filter(|other| other.stem == "ping" && other.stem != file.stem);
        let (rules, diags) =
            load_texts(&others.chain([file]).copied().collect::<Vec<_>>(), SHIPPED);
        assert_eq!(lines(&diags), "", "{}", file.text);
        seen.extend(rules.into_keys());
    }
    assert!(seen.contains(&RuleId("ping2.ping2".into())), "{seen:?}");
}
