//! `nvidia-smi`: `-L`, `-q`, `-q -x`, `--query-gpu`, `--query-compute-apps`, `topo -m` and `dmon`
//! for the profile's GPUs, idle and in P0. Errors go to standard output and the exit statuses are
//! the documented ones: 2 for a bad argument, 6 for an unknown GPU, 9 without a driver.

use std::io;

use super::Sim;
use super::nvidia_topo;

/// Exit status for an invalid argument.
const INVALID: u8 = 2;
/// Exit status for a query that found nothing.
const NOT_FOUND: u8 = 6;
/// Exit status without a loaded driver.
const NO_DRIVER: u8 = 9;
/// Memory that the driver holds on an idle GPU, in MiB.
const USED_MIB: u64 = 3;

/// PCI bus of a GPU.
pub(super) fn bus(index: u64) -> u64 {
    0x38 + 2 * index
}

pub(super) fn run(sim: &mut Sim<'_>) -> io::Result<u8> {
    if sim.fails() {
        writeln!(
            sim.out,
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed and running.\n"
        )?;
        return Ok(NO_DRIVER);
    }
    if sim.profile.gpu.count == 0 {
        writeln!(sim.out, "No devices were found")?;
        return Ok(NOT_FOUND);
    }
    match sim.args.first().map(String::as_str) {
        None => summary(sim),
        Some("topo") => nvidia_topo::run(sim),
        Some("dmon") => dmon(sim),
        Some("-h" | "--help") => {
            writeln!(
                sim.out,
                "NVIDIA System Management Interface -- v{} (simulated)\n\nnvidia-smi [OPTION1 [ARG1]] [OPTION2 [ARG2]] ...",
                sim.profile.gpu.driver
            )?;
            Ok(0)
        }
        Some(_) => flags(sim),
    }
}

/// What the flags select.
#[derive(Default)]
struct Asked {
    list: bool,
    report: bool,
    xml: bool,
    query: Option<String>,
    apps: Option<String>,
    format: Option<String>,
    indices: Option<String>,
}

fn flags(sim: &mut Sim<'_>) -> io::Result<u8> {
    let mut asked = Asked::default();
    let mut words = sim.args.iter();
    while let Some(word) = words.next() {
        let (name, attached) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        let mut value = || attached.clone().or_else(|| words.next().cloned());
        match name {
            "-L" | "--list-gpus" => asked.list = true,
            "-q" | "--query" => asked.report = true,
            "-x" | "--xml-format" => asked.xml = true,
            "--query-gpu" => asked.query = value(),
            "--query-compute-apps" => asked.apps = value(),
            "--format" => asked.format = value(),
            "-i" | "--id" => asked.indices = value(),
            "-d" | "--display" => {
                value();
            }
            _ => return invalid(sim),
        }
    }
    let Some(gpus) = selected(sim, asked.indices.as_deref()) else {
        writeln!(sim.out, "No devices were found")?;
        return Ok(NOT_FOUND);
    };
    match (asked.list, asked.report, &asked.query, &asked.apps) {
        (true, false, None, None) => list(sim, &gpus),
        (false, true, None, None) if asked.xml => xml(sim, &gpus),
        (false, true, None, None) => report(sim, &gpus),
        (false, false, Some(fields), None) => query(sim, &gpus, fields, asked.format.as_deref()),
        (false, false, None, Some(fields)) => apps(sim, fields, asked.format.as_deref()),
        _ => invalid(sim),
    }
}

fn invalid(sim: &mut Sim<'_>) -> io::Result<u8> {
    writeln!(
        sim.out,
        "Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n"
    )?;
    Ok(INVALID)
}

/// The GPUs of `-i`; all without it; `None` when one does not exist.
pub(super) fn selected(sim: &Sim<'_>, indices: Option<&str>) -> Option<Vec<u64>> {
    let count = u64::from(sim.profile.gpu.count);
    match indices {
        None => Some((0..count).collect()),
        Some(list) => list
            .split(',')
            .map(|i| i.trim().parse().ok().filter(|i| *i < count))
            .collect(),
    }
}

fn uuid(sim: &Sim<'_>, index: u64) -> String {
    let key = format!("{}/{}/{index}", sim.profile.seed, sim.profile.instance_type);
    let hex = blake3::hash(key.as_bytes()).to_hex();
    let h = hex.as_str();
    format!(
        "GPU-{}-{}-{}-{}-{}",
        &h[..8],
        &h[8..12],
        &h[12..16],
        &h[16..20],
        &h[20..32]
    )
}

fn list(sim: &mut Sim<'_>, gpus: &[u64]) -> io::Result<u8> {
    for gpu in gpus {
        let uuid = uuid(sim, *gpu);
        writeln!(
            sim.out,
            "GPU {gpu}: {} (UUID: {uuid})",
            sim.profile.gpu.name
        )?;
    }
    Ok(0)
}

/// Memory in use on every GPU: what the driver holds, or what the fault `nvidia-smi:used-mib=N` says
/// that somebody has left there.
fn used_mib(sim: &Sim<'_>) -> u64 {
    let faults = sim.profile.fail.iter();
    let mut left =
        faults.filter_map(|fault| fault.strip_prefix("nvidia-smi:used-mib=")?.parse().ok());
    left.next().unwrap_or(USED_MIB)
}

/// Value and unit of a `--query-gpu` field.
fn field(sim: &Sim<'_>, gpu: u64, name: &str) -> Option<(String, &'static str)> {
    let p = &sim.profile.gpu;
    let memory = p.memory_mib;
    let plain = |value: &str| Some((value.to_owned(), ""));
    match name {
        "index" => Some((gpu.to_string(), "")),
        "count" => Some((p.count.to_string(), "")),
        "name" | "gpu_name" => plain(&p.name),
        "uuid" | "gpu_uuid" => Some((uuid(sim, gpu), "")),
        "serial" | "gpu_serial" | "fan.speed" | "mig.mode.current" => plain("[N/A]"),
        "driver_version" => plain(&p.driver),
        "timestamp" => plain("2024/01/01 00:00:00.000"),
        "vbios_version" => plain("00.00.00.00.00"),
        "compute_cap" => plain(if p.name.contains("H100") || p.name.contains("H200") {
            "9.0"
        } else {
            "8.9"
        }),
        "memory.total" => Some((memory.to_string(), "MiB")),
        "memory.used" => Some((used_mib(sim).to_string(), "MiB")),
        "memory.free" => Some((memory.saturating_sub(used_mib(sim)).to_string(), "MiB")),
        "temperature.gpu" => Some((format!("{:.0}", p.temperature_c), "")),
        "pstate" => plain("P0"),
        "persistence_mode" => plain("Enabled"),
        "compute_mode" => plain("Default"),
        "utilization.gpu" | "utilization.memory" => Some(("0".into(), "%")),
        "power.draw" => Some(("35.10".into(), "W")),
        "power.limit" => Some(("350.00".into(), "W")),
        "clocks.sm" | "clocks.current.sm" | "clocks.gr" => Some(("210".into(), "MHz")),
        "clocks.max.sm" => Some(("2520".into(), "MHz")),
        "clocks.mem" | "clocks.current.memory" => Some(("9001".into(), "MHz")),
        "pci.bus_id" | "gpu_bus_id" => Some((format!("00000000:{:02X}:00.0", bus(gpu)), "")),
        "pcie.link.gen.current" => plain("4"),
        "pcie.link.width.current" => plain("16"),
        "clocks_throttle_reasons.active" | "clocks_event_reasons.active" => {
            plain("0x0000000000000001")
        }
        "ecc.errors.uncorrected.volatile.total" | "ecc.errors.corrected.volatile.total" => {
            plain("0")
        }
        _ => None,
    }
}

/// Whether the header and the units are printed; `None` for a format that is none.
fn format(format: Option<&str>) -> Option<(bool, bool)> {
    let mut words = format?.split(',').map(str::trim);
    if words.next() != Some("csv") {
        return None;
    }
    let (mut header, mut units) = (true, true);
    for word in words {
        match word {
            "noheader" => header = false,
            "nounits" => units = false,
            _ => return None,
        }
    }
    Some((header, units))
}

fn query(
    sim: &mut Sim<'_>,
    gpus: &[u64],
    fields: &str,
    asked_format: Option<&str>,
) -> io::Result<u8> {
    let Some((header, units)) = format(asked_format) else {
        return invalid(sim);
    };
    let names: Vec<&str> = fields.split(',').map(str::trim).collect();
    let mut titles = Vec::new();
    for name in &names {
        match field(sim, 0, name) {
            Some((_, unit)) if units && !unit.is_empty() => titles.push(format!("{name} [{unit}]")),
            Some(_) => titles.push((*name).to_owned()),
            None => {
                writeln!(sim.out, "Field \"{name}\" is not a valid field to query.\n")?;
                return Ok(INVALID);
            }
        }
    }
    if header {
        writeln!(sim.out, "{}", titles.join(", "))?;
    }
    for gpu in gpus {
        let cells: Vec<String> = names
            .iter()
            .filter_map(|name| field(sim, *gpu, name))
            .map(|(value, unit)| match unit {
                "" => value,
                _ if !units => value,
                unit => format!("{value} {unit}"),
            })
            .collect();
        writeln!(sim.out, "{}", cells.join(", "))?;
    }
    Ok(0)
}

/// No process runs on a simulated GPU.
fn apps(sim: &mut Sim<'_>, fields: &str, asked_format: Option<&str>) -> io::Result<u8> {
    let Some((header, units)) = format(asked_format) else {
        return invalid(sim);
    };
    let mut titles = Vec::new();
    for name in fields.split(',').map(str::trim) {
        match name {
            "used_memory" | "used_gpu_memory" if units => titles.push(format!("{name} [MiB]")),
            "pid" | "name" | "process_name" | "gpu_uuid" | "gpu_name" | "gpu_bus_id"
            | "used_memory" | "used_gpu_memory" | "timestamp" => titles.push(name.to_owned()),
            _ => {
                writeln!(sim.out, "Field \"{name}\" is not a valid field to query.\n")?;
                return Ok(INVALID);
            }
        }
    }
    if header {
        writeln!(sim.out, "{}", titles.join(", "))?;
    }
    Ok(0)
}

fn report(sim: &mut Sim<'_>, gpus: &[u64]) -> io::Result<u8> {
    let p = sim.profile.gpu.clone();
    let entry = |name: &str, value: &str| format!("{name:<50}: {value}");
    writeln!(sim.out, "\n==============NVSMI LOG==============\n")?;
    writeln!(
        sim.out,
        "{}",
        entry("Timestamp", "Mon Jan  1 00:00:00 2024")
    )?;
    writeln!(sim.out, "{}", entry("Driver Version", &p.driver))?;
    writeln!(sim.out, "{}\n", entry("CUDA Version", &p.cuda))?;
    writeln!(
        sim.out,
        "{}",
        entry("Attached GPUs", &gpus.len().to_string())
    )?;
    for gpu in gpus {
        let inner = |name: &str, value: &str| format!("    {name:<46}: {value}");
        let deeper = |name: &str, value: &str| format!("        {name:<42}: {value}");
        writeln!(sim.out, "GPU 00000000:{:02X}:00.0", bus(*gpu))?;
        for (name, value) in [
            ("Product Name", p.name.clone()),
            ("Persistence Mode", "Enabled".into()),
            ("GPU UUID", uuid(sim, *gpu)),
            ("Performance State", "P0".into()),
        ] {
            writeln!(sim.out, "{}", inner(name, &value))?;
        }
        writeln!(sim.out, "    FB Memory Usage")?;
        for (name, value) in [
            ("Total", p.memory_mib),
            ("Used", USED_MIB),
            ("Free", p.memory_mib.saturating_sub(USED_MIB)),
        ] {
            writeln!(sim.out, "{}", deeper(name, &format!("{value} MiB")))?;
        }
        writeln!(sim.out, "    Utilization\n{}", deeper("Gpu", "0 %"))?;
        let heat = format!("{:.0} C", p.temperature_c);
        writeln!(
            sim.out,
            "    Temperature\n{}",
            deeper("GPU Current Temp", &heat)
        )?;
        writeln!(sim.out, "    Processes{:<37}: None\n", "")?;
    }
    Ok(0)
}

fn xml(sim: &mut Sim<'_>, gpus: &[u64]) -> io::Result<u8> {
    let p = sim.profile.gpu.clone();
    let escaped = |text: &str| {
        text.replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
    };
    writeln!(
        sim.out,
        "<?xml version=\"1.0\" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM \"nvsmi_device_v12.dtd\">\n<nvidia_smi_log>\n\t\
         <timestamp>Mon Jan  1 00:00:00 2024</timestamp>\n\t<driver_version>{}</driver_version>\n\t\
         <cuda_version>{}</cuda_version>\n\t<attached_gpus>{}</attached_gpus>",
        escaped(&p.driver),
        escaped(&p.cuda),
        gpus.len()
    )?;
    for gpu in gpus {
        writeln!(
            sim.out,
            "\t<gpu id=\"00000000:{:02X}:00.0\">\n\t\t<product_name>{}</product_name>\n\t\t<uuid>{}</uuid>\n\t\t\
             <performance_state>P0</performance_state>\n\t\t<fb_memory_usage>\n\t\t\t<total>{} MiB</total>\n\t\t\t\
             <used>{USED_MIB} MiB</used>\n\t\t</fb_memory_usage>\n\t\t<temperature>\n\t\t\t\
             <gpu_temp>{:.0} C</gpu_temp>\n\t\t</temperature>\n\t</gpu>",
            bus(*gpu),
            escaped(&p.name),
            uuid(sim, *gpu),
            p.memory_mib,
            p.temperature_c
        )?;
    }
    writeln!(sim.out, "</nvidia_smi_log>")?;
    Ok(0)
}

/// The table that `nvidia-smi` prints without arguments, reduced to its columns.
fn summary(sim: &mut Sim<'_>) -> io::Result<u8> {
    let p = sim.profile.gpu.clone();
    let rule = format!("+{}+", "-".repeat(89));
    writeln!(
        sim.out,
        "{rule}\n| {:<88}|\n|{}|",
        format!(
            "NVIDIA-SMI {0}    Driver Version: {0}    CUDA Version: {1}",
            p.driver, p.cuda
        ),
        "-".repeat(89)
    )?;
    for gpu in 0..u64::from(p.count) {
        let line = format!(
            "{gpu:>3}  {:<28} On | 00000000:{:02X}:00.0 | {:>3.0}C  P0 | {USED_MIB:>6}MiB / {:>6}MiB",
            p.name,
            bus(gpu),
            p.temperature_c,
            p.memory_mib
        );
        writeln!(sim.out, "| {line:<88}|")?;
    }
    writeln!(sim.out, "{rule}")?;
    Ok(0)
}

/// Letter, columns with units, values of an idle GPU.
type Group = (char, &'static [(&'static str, &'static str)]);

const GROUPS: &[Group] = &[
    ('p', &[("pwr", "W"), ("gtemp", "C"), ("mtemp", "C")]),
    (
        'u',
        &[
            ("sm", "%"),
            ("mem", "%"),
            ("enc", "%"),
            ("dec", "%"),
            ("jpg", "%"),
            ("ofa", "%"),
        ],
    ),
    ('c', &[("mclk", "MHz"), ("pclk", "MHz")]),
    ('v', &[("pviol", "%"), ("tviol", "bool")]),
    ('m', &[("fb", "MB"), ("bar1", "MB"), ("ccpm", "MB")]),
    (
        'e',
        &[("sbecc", "errs"), ("dbecc", "errs"), ("pci", "errs")],
    ),
    ('t', &[("rxpci", "MB/s"), ("txpci", "MB/s")]),
];

/// Samples are taken until killed without `-c`.
fn dmon(sim: &mut Sim<'_>) -> io::Result<u8> {
    let (mut select, mut delay, mut count, mut indices) = ("puc".to_owned(), 1u32, None, None);
    let mut words = sim.args[1..].iter();
    while let Some(word) = words.next() {
        let Some(value) = words.next() else {
            return invalid(sim);
        };
        match word.as_str() {
            "-s" => select.clone_from(value),
            "-d" => match value.parse() {
                Ok(seconds @ 1..=99) => delay = seconds,
                _ => return invalid(sim),
            },
            "-c" => match value.parse::<u32>() {
                Ok(n) if n > 0 => count = Some(n),
                _ => return invalid(sim),
            },
            "-i" => indices = Some(value.clone()),
            _ => return invalid(sim),
        }
    }
    if select.chars().any(|c| !GROUPS.iter().any(|(g, _)| *g == c)) {
        return invalid(sim);
    }
    let Some(gpus) = selected(sim, indices.as_deref()) else {
        writeln!(sim.out, "No devices were found")?;
        return Ok(NOT_FOUND);
    };
    // The columns stand in the tool's order, whatever the order of the letters.
    let columns: Vec<(&str, &str)> = GROUPS
        .iter()
        .filter(|(g, _)| select.contains(*g))
        .flat_map(|(_, columns)| columns.iter().copied())
        .collect();
    let mut printed = 0u32;
    loop {
        for gpu in &gpus {
            // The header comes again every twenty rows.
            if printed.is_multiple_of(20) {
                write!(sim.out, "# gpu")?;
                for (name, _) in &columns {
                    write!(sim.out, " {name:>6}")?;
                }
                write!(sim.out, " \n# Idx")?;
                for (_, unit) in &columns {
                    write!(sim.out, " {unit:>6}")?;
                }
                writeln!(sim.out, " ")?;
            }
            printed = printed.wrapping_add(1);
            write!(sim.out, "{gpu:>5}")?;
            for (name, _) in &columns {
                let value = match *name {
                    "pwr" => "35".to_owned(),
                    "gtemp" => format!("{:.0}", sim.profile.gpu.temperature_c),
                    "mtemp" => "-".to_owned(),
                    "mclk" => "9001".to_owned(),
                    "pclk" => "210".to_owned(),
                    "fb" => USED_MIB.to_string(),
                    _ => "0".to_owned(),
                };
                write!(sim.out, " {value:>6}")?;
            }
            writeln!(sim.out, " ")?;
        }
        if let Some(left) = &mut count {
            *left -= 1;
            if *left == 0 {
                return Ok(0);
            }
        }
        sim.wait(f64::from(delay))?;
    }
}
