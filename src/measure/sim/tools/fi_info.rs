//! `fi_info -p PROVIDER [-t TYPE]`: one EFA device with its two endpoint types, and TCP.

use std::io;

use super::Sim;
use super::getopt::{self, Opt, Takes};

/// The EFA device of every simulated host, also the NIC of `nvidia-smi topo -m`.
pub(super) const EFA_DEVICE: &str = "rdmap49s0";

const OPTIONS: &[Opt] = &[
    ('h', "help", Takes::Nothing),
    ('s', "src_addr", Takes::Value),
    ('n', "node", Takes::Value),
    ('P', "port", Takes::Value),
    ('c', "caps", Takes::Value),
    ('m', "mode", Takes::Value),
    ('t', "ep_type", Takes::Value),
    ('d', "domain", Takes::Value),
    ('f', "fabric", Takes::Value),
    ('a', "addr_format", Takes::Value),
    ('p', "provider", Takes::Value),
    ('e', "env", Takes::Nothing),
    ('g', "getenv", Takes::Value),
    ('l', "list", Takes::Nothing),
    ('v', "verbose", Takes::Nothing),
    ('\0', "version", Takes::Nothing),
];

struct Endpoint {
    provider: &'static str,
    fabric: &'static str,
    domain: String,
    version: &'static str,
    kind: &'static str,
    protocol: &'static str,
}

pub(super) fn run(sim: &mut Sim<'_>) -> io::Result<u8> {
    let line = match getopt::parse(sim.tool, sim.args, OPTIONS) {
        Ok(line) if !line.has("h") && line.operands.is_empty() => line,
        other => {
            if let Err(message) = other {
                writeln!(sim.err, "{message}")?;
            }
            writeln!(
                sim.out,
                "Usage: fi_info\n  -p, --provider=PROV\t\tspecify provider explicitly\n  -t, --ep_type=EPTYPE\t\tspecify single endpoint type: FI_EP_MSG, FI_EP_DGRAM..."
            )?;
            return Ok(1);
        }
    };
    if line.has("version") {
        writeln!(
            sim.out,
            "fi_info: 1.22.0\nlibfabric: 1.22.0\nlibfabric api: 1.22"
        )?;
        return Ok(0);
    }
    if line.has("l") {
        writeln!(
            sim.out,
            "efa:\n    version: 122.0\ntcp:\n    version: 122.0"
        )?;
        return Ok(0);
    }
    let efa = |ending: &str, kind| Endpoint {
        provider: "efa",
        fabric: "efa",
        domain: format!("{EFA_DEVICE}-{ending}"),
        version: "122.0",
        kind,
        protocol: "FI_PROTO_EFA",
    };
    let all = [
        efa("rdm", "FI_EP_RDM"),
        efa("dgrm", "FI_EP_DGRAM"),
        Endpoint {
            provider: "tcp",
            fabric: "127.0.0.0/8",
            domain: "lo".into(),
            version: "122.0",
            kind: "FI_EP_MSG",
            protocol: "FI_PROTO_SOCK_TCP",
        },
    ];
    let wanted = |name: &str, value: &str| line.value(name).is_none_or(|w| w == value);
    let found: Vec<&Endpoint> = all
        .iter()
        .filter(|e| {
            wanted("p", e.provider)
                && wanted("t", e.kind)
                && wanted("d", &e.domain)
                && wanted("f", e.fabric)
        })
        .collect();
    if sim.fails() || found.is_empty() {
        writeln!(sim.err, "fi_getinfo: -61")?;
        return Ok(61);
    }
    for e in found {
        writeln!(
            sim.out,
            "provider: {}\n    fabric: {}\n    domain: {}\n    version: {}\n    type: {}\n    protocol: {}",
            e.provider, e.fabric, e.domain, e.version, e.kind, e.protocol
        )?;
    }
    Ok(0)
}
