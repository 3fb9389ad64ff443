//! Rules and patterns that the tests are made of.

/// A measurement that writes `{"got": n}`; `script` runs before.
pub(crate) fn rule(name: &str, script: &str) -> String {
    format!(
        r#"
[{name}]
param.n = {{ type = "int", default = 1, doc = "a number" }}
param.m = {{ type = "int", default = 0, doc = "another" }}
roles = {{ first = {{}} }}
[[{name}.step]]
name = "go"
role = "first"
timeout = "1m"
run = """
{script}
echo '{{"schema": "t-v1", "got": '{{{{ n }}}}'}}' > {{{{ out.result }}}}
"""
[{name}.output]
result = {{ path = "r.json", schema = "t-v1" }}
[{name}.metric]
got = {{ from = "result", at = "/got", unit = "" }}
"#
    )
}

/// An analysis that keeps the list of what it was given.
pub(crate) const LOOK: &str = r#"
[look]
kind = "analysis"
[[look.step]]
name = "read"
timeout = "1m"
run = "cp {{ inputs }} {{ out.result }}"
[look.output]
result = { path = "r.json" }
"#;

/// A layer `id` with one pattern `p-id`.
pub(crate) fn pattern(id: &str, rule: &str, more: &str) -> String {
    format!(
        "[[layer]]\nid = \"{id}\"\nrule = \"t.{rule}\"\npattern = \"p-{id}\"\nestimate = \"1s\"\n{more}\n"
    )
}

/// The label of that pattern.
pub(crate) fn label(id: &str) -> String {
    format!("//t:p-{id}")
}

/// A service that takes the GPU of its host; `script` runs when it is up.
pub(crate) fn served(script: &str, step: &str) -> String {
    format!(
        r#"
[served]
param.size = {{ type = "int", default = 1, doc = "configuration of the service" }}
param.n = {{ type = "int", default = 1, doc = "of the step alone" }}
roles = {{ first = {{ gpus = 1 }} }}
[[served.service]]
name = "server"
role = "first"
ports = {{ http = 8000 }}
stop_grace = "2s"
ready = {{ file = "{{{{ work }}}}/up", within = "30s", fail_on_log = ["FATAL"] }}
run = """
echo {{{{ size }}}} {{{{ self.port.http }}}} >> SCRATCH/starts
echo serving {{{{ size }}}}
echo $$ > SCRATCH/pid-{{{{ size }}}}
{script}
touch {{{{ work }}}}/up
while sleep 0.05; do
  test -e SCRATCH/say-{{{{ size }}}} && cat SCRATCH/say-{{{{ size }}}} && rm SCRATCH/say-{{{{ size }}}}
done
"""
[[served.step]]
name = "go"
role = "first"
timeout = "1m"
run = """
echo {{{{ size }}}}-{{{{ n }}}} {{{{ service.server.port.http }}}} >> SCRATCH/order
{step}
echo '{{}}' > {{{{ out.result }}}}
"""
[served.output]
result = {{ path = "r.json" }}
"#
    )
}

/// A pattern `p-sSIZEnN` of [`served`].
pub(crate) fn cell(size: i64, n: i64, more: &str) -> String {
    pattern(
        &format!("s{size}n{n}"),
        "served",
        &format!("settings = {{ size = {size}, n = {n} }}\n{more}"),
    )
}
