//! The command line of `nixlbench`: gflags with the released tool's defaults, and the checks that
//! it makes before it talks to anyone. A plan that comes out can be run.

use std::collections::BTreeMap;
use std::io;

use super::Sim;

/// Flags with their defaults, as `nixlbench --help` lists them; those that a transfer between
/// two hosts can use.
const FLAGS: &[(&str, &str)] = &[
    ("benchmark_group", "default"),
    ("runtime_type", "ETCD"),
    ("etcd_endpoints", "http://localhost:2379"),
    ("worker_type", "nixl"),
    ("backend", "UCX"),
    ("initiator_seg_type", "DRAM"),
    ("target_seg_type", "DRAM"),
    ("scheme", "pairwise"),
    ("mode", "SG"),
    ("op_type", "WRITE"),
    ("check_consistency", "0"),
    ("total_buffer_size", "8589934592"),
    ("num_initiator_dev", "1"),
    ("num_target_dev", "1"),
    ("start_block_size", "4096"),
    ("max_block_size", "67108864"),
    ("start_batch_size", "1"),
    ("max_batch_size", "1"),
    ("num_iter", "1000"),
    ("warmup_iter", "100"),
    ("large_blk_iter_ftr", "16"),
    ("num_threads", "1"),
    ("enable_pt", "0"),
    ("progress_threads", "0"),
    ("device_list", "all"),
    ("enable_vmm", "0"),
    ("recreate_xfer", "0"),
    ("filepath", ""),
    // Not in the released tool.
    ("message_size", ""),
    ("iterations", ""),
    ("role", ""),
];

const BOOLEANS: &[&str] = &[
    "check_consistency",
    "enable_pt",
    "enable_vmm",
    "recreate_xfer",
];
/// Flags that the released tool does not have.
pub(super) const FOREIGN: &[&str] = &["message_size", "iterations", "role"];

/// Values by flag.
pub(super) type Flags = BTreeMap<&'static str, String>;

/// A sweep that passed the checks.
pub(super) struct Plan {
    pub blocks: (u64, u64),
    pub batches: (u64, u64),
    pub iterations: u64,
    pub factor: u64,
    pub threads: u64,
}

/// Reads gflags: `--name=value`, `--name value`, one or two dashes, `-` for `_`, `--noname`.
pub(super) fn parse(args: &[String]) -> Result<Flags, String> {
    let mut flags: Flags = FLAGS.iter().map(|(n, v)| (*n, (*v).to_owned())).collect();
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            return Err(format!("unexpected argument '{word}'"));
        };
        let (name, attached) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let clean = name.replace('-', "_");
        let known = |n: &str| FLAGS.iter().map(|(f, _)| *f).find(|f| *f == n);
        let (key, value) = match (known(&clean), clean.strip_prefix("no").and_then(known)) {
            (Some(key), _) if BOOLEANS.contains(&key) => {
                (key, attached.unwrap_or_else(|| "1".into()))
            }
            (Some(key), _) => match attached.or_else(|| words.next().cloned()) {
                Some(value) => (key, value),
                None => return Err(format!("flag '--{name}' is missing its argument")),
            },
            (None, Some(key)) if BOOLEANS.contains(&key) => (key, "0".into()),
            _ => return Err(format!("unknown command line flag '{name}'")),
        };
        let value = match value.as_str() {
            "true" if BOOLEANS.contains(&key) => "1".into(),
            "false" if BOOLEANS.contains(&key) => "0".into(),
            _ => value,
        };
        flags.insert(key, value);
    }
    Ok(flags)
}

/// Turns the flags that the released tool does not have into those it has.
pub(super) fn translate(flags: &mut Flags) -> Result<(), String> {
    let message_size = flags["message_size"].clone();
    if !message_size.is_empty() {
        let threads = number(flags, "num_threads")?;
        flags.insert("start_block_size", message_size.clone());
        flags.insert("max_block_size", message_size);
        let needed = number(flags, "max_block_size")?.saturating_mul(threads.max(1));
        let buffer = number(flags, "total_buffer_size")?.max(needed);
        flags.insert("total_buffer_size", buffer.to_string());
    }
    let iterations = flags["iterations"].clone();
    if !iterations.is_empty() {
        flags.insert("num_iter", iterations);
    }
    let scheme = match flags["scheme"].as_str() {
        "one_to_one" => "pairwise",
        "many_to_one" => "manytoone",
        "one_to_many" => "onetomany",
        other => other,
    };
    let scheme = scheme.to_owned();
    flags.insert("scheme", scheme);
    Ok(())
}

/// Whether a flag's value is the one that nixlbench takes without it.
pub(super) fn is_default(name: &str, value: &str) -> bool {
    FLAGS.iter().any(|(n, v)| *n == name && *v == value)
}

/// Why there is no plan.
pub(super) enum Stop {
    Message(String),
    Write(io::Error),
}

impl From<String> for Stop {
    fn from(message: String) -> Self {
        Stop::Message(message)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Write(error)
    }
}

fn number(flags: &Flags, name: &str) -> Result<u64, String> {
    flags[name].parse().map_err(|_| {
        format!(
            "ERROR: illegal value '{}' specified for uint64 flag '{name}'",
            flags[name]
        )
    })
}

/// Checks the flags; adjusts the iterations as the real tool does, and says so.
pub(super) fn plan(sim: &mut Sim<'_>, flags: &mut Flags) -> Result<Plan, Stop> {
    for (name, allowed) in [
        ("backend", &["UCX", "LIBFABRIC"][..]),
        ("initiator_seg_type", &["DRAM", "VRAM"]),
        ("target_seg_type", &["DRAM", "VRAM"]),
        ("scheme", &["pairwise", "manytoone", "onetomany", "tp"]),
        ("mode", &["SG", "MG"]),
        ("op_type", &["READ", "WRITE"]),
        ("worker_type", &["nixl"]),
        ("runtime_type", &["ETCD"]),
        ("role", &["", "initiator", "target"]),
    ] {
        let value = &flags[name];
        if !allowed.contains(&value.as_str()) {
            return Err(format!(
                "Invalid {name}: {value}. Must be one of [{}]",
                allowed.join(", ")
            )
            .into());
        }
    }
    let threads = number(flags, "num_threads")?;
    let factor = number(flags, "large_blk_iter_ftr")?;
    if factor == 0 {
        return Err("iter_factor must be greater than 0".to_owned().into());
    }
    let devices = number(flags, "num_initiator_dev")?.max(number(flags, "num_target_dev")?);
    if threads == 0 || devices == 0 {
        return Err("num_threads and the device counts must be greater than 0"
            .to_owned()
            .into());
    }
    let blocks = (
        number(flags, "start_block_size")?,
        number(flags, "max_block_size")?,
    );
    let batches = (
        number(flags, "start_batch_size")?,
        number(flags, "max_batch_size")?,
    );
    let buffer = number(flags, "total_buffer_size")?;
    let largest = blocks.1.saturating_mul(batches.1);
    if blocks.0 == 0 || batches.0 == 0 || blocks.0 > blocks.1 || batches.0 > batches.1 {
        return Err(
            "Incorrect block or batch sizes: start must be from 1 to max"
                .to_owned()
                .into(),
        );
    }
    if largest > buffer / devices {
        return Err("Incorrect buffer size configuration for Initiator(max_block_size * max_batch_size) is > (total_buffer_size / num_initiator_dev)".to_owned().into());
    }
    if largest > buffer / threads {
        return Err(format!("Incorrect buffer size configuration (max_block_size * max_batch_size) ({largest}) is > (total_buffer_size / num_threads) ({})", buffer / threads).into());
    }
    // Every thread takes the same number of iterations, also of the reduced ones.
    let part = threads.saturating_mul(factor);
    for name in ["num_iter", "warmup_iter"] {
        let asked = number(flags, name)?;
        if asked % part != 0 {
            let adjusted = asked.saturating_add(part - asked % part);
            writeln!(
                sim.out,
                "WARNING: Adjusting {name} to {adjusted} to allow equal distribution to {threads} threads"
            )?;
            flags.insert(
                if name == "num_iter" {
                    "num_iter"
                } else {
                    "warmup_iter"
                },
                adjusted.to_string(),
            );
        }
    }
    let iterations = number(flags, "num_iter")?;
    if iterations == 0 {
        return Err("num_iter must be greater than 0".to_owned().into());
    }
    Ok(Plan {
        blocks,
        batches,
        iterations,
        factor,
        threads,
    })
}
