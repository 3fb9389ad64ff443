//! The table `slurm` of a platform: what its jobs have in common. Everything here ends up in an
//! option of `sbatch`, so what could be taken for more than one word is refused.

use super::reach::{ROOT, path, root, words};
use crate::error::Diagnostic;
use crate::source::{Table, Text};

type Diags = Vec<Diagnostic>;

/// Most CPUs of one node; a slip of the keyboard is more likely than more.
const MAX_CPUS: i64 = 65_536;
/// Most jobs of one `--detach`, which all are in the queue at once.
const MOST_DRIVERS: u32 = 50;

/// The table `slurm` of a platform. What is not said is as the cluster's defaults are.
#[derive(Debug, Clone, PartialEq)]
pub struct SlurmTable {
    /// Partition of the jobs.
    pub partition: Option<String>,
    /// Account that they are charged to.
    pub account: Option<String>,
    /// Quality of service.
    pub qos: Option<String>,
    /// Reservation that they run in.
    pub reservation: Option<String>,
    /// Features that a node must have.
    pub constraint: Option<String>,
    /// CPUs of a job, and so of one script.
    pub cpus: Option<u32>,
    /// Another `slurm.conf`.
    pub config: Option<String>,
    /// The kind of Slurm's resource that GPUs are (`gpu`, `gpu:h200`): jobs ask for as many as the
    /// plan gives them.
    pub gres: Option<String>,
    /// How long a service may go on at most, whatever needs it.
    pub service_time_s: Option<f64>,
    /// Whether the members of a gang are one job on several nodes.
    pub together: bool,
    /// The jobs of `doe build --detach`.
    pub driver: DriverTable,
    /// Folder that the nodes and this machine share; `%w` stands for the workspace.
    pub root: String,
    /// How long a controller that does not answer is waited for.
    pub patience_s: f64,
    /// Folders put in front of the usual search path.
    pub path: Vec<String>,
    /// The `doe` program for the nodes, when it is not this one.
    pub doe: Option<String>,
}

/// The table `driver` there. What it does not say is as for all jobs.
#[derive(Debug, Clone, PartialEq)]
pub struct DriverTable {
    /// Partition: best one whose nodes nothing is measured on.
    pub partition: Option<String>,
    /// Account that they are charged to.
    pub account: Option<String>,
    /// Quality of service.
    pub qos: Option<String>,
    /// Features that a node must have.
    pub constraint: Option<String>,
    /// How long one of them may drive; else the partition's default.
    pub time_s: Option<f64>,
    /// How many there may be, one after another.
    pub count: u32,
}

impl Default for DriverTable {
    fn default() -> Self {
        Self {
            partition: None,
            account: None,
            qos: None,
            constraint: None,
            time_s: None,
            count: 4,
        }
    }
}

impl Default for SlurmTable {
    fn default() -> Self {
        Self {
            partition: None,
            account: None,
            qos: None,
            reservation: None,
            constraint: None,
            cpus: None,
            config: None,
            gres: None,
            service_time_s: None,
            together: true,
            driver: DriverTable::default(),
            root: ROOT.to_owned(),
            patience_s: 300.0,
            path: Vec::new(),
            doe: None,
        }
    }
}

/// Reads `slurm = { … }` over what is known.
pub(super) fn slurm(slurm: &mut SlurmTable, mut table: Table<'_>, diags: &mut Diags) {
    let places = [
        ("partition", &mut slurm.partition),
        ("account", &mut slurm.account),
        ("qos", &mut slurm.qos),
        ("reservation", &mut slurm.reservation),
        ("constraint", &mut slurm.constraint),
        ("config", &mut slurm.config),
        ("doe", &mut slurm.doe),
    ];
    words(places, &mut table, diags);
    if let Some(cpus) = table.opt_int("cpus", diags) {
        match u32::try_from(cpus.value) {
            Ok(value) if value > 0 && cpus.value <= MAX_CPUS => slurm.cpus = Some(value),
            _ => diags.push(
                Diagnostic::error(
                    "out-of-bounds",
                    format!("`cpus` must be from 1 to {MAX_CPUS}, found {}", cpus.value),
                )
                .at(cpus.site, ""),
            ),
        }
    }
    if let Some(patience) = table.opt_duration("patience", diags) {
        slurm.patience_s = patience.value;
    }
    if let Some(found) = table.opt_str("gres", diags) {
        gres(&mut slurm.gres, found, diags);
    }
    if let Some(time) = table.opt_duration("service_time", diags) {
        slurm.service_time_s = Some(time.value);
    }
    if let Some(together) = table.opt_bool("together", diags) {
        slurm.together = together.value;
    }
    if let Some(found) = table.opt_table("driver", diags) {
        driver(&mut slurm.driver, found, diags);
    }
    root(&mut slurm.root, &mut table, diags);
    path(&mut slurm.path, &mut table, diags);
    table.remaining(diags, "of `slurm`");
}

/// A kind of resource, without a number.
fn gres(gres: &mut Option<String>, found: Text, diags: &mut Diags) {
    let parts: Vec<&str> = found.text.split(':').collect();
    let is_name = |part: &&str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        part.starts_with(|c: char| c.is_ascii_alphabetic()) && part.chars().all(fits)
    };
    if parts.len() <= 2 && parts.iter().all(is_name) {
        *gres = Some(found.text);
        return;
    }
    let text = format!(
        "`gres` must be a kind of resource, `gpu` or `gpu:h200`, found `{}`",
        found.text
    );
    diags.push(
        Diagnostic::error("bad-value", text)
            .at(found.site, "")
            .hint("how many a job asks for is what the plan gives its role, for example `roles = { decode = { gpus = 8 } }`"),
    );
}

/// Reads `driver = { … }`.
fn driver(driver: &mut DriverTable, mut table: Table<'_>, diags: &mut Diags) {
    let places = [
        ("partition", &mut driver.partition),
        ("account", &mut driver.account),
        ("qos", &mut driver.qos),
        ("constraint", &mut driver.constraint),
    ];
    words(places, &mut table, diags);
    if let Some(time) = table.opt_duration("time", diags) {
        driver.time_s = Some(time.value);
    }
    if let Some(count) = table.opt_int("count", diags) {
        match u32::try_from(count.value) {
            Ok(value) if (1..=MOST_DRIVERS).contains(&value) => driver.count = value,
            _ => diags.push(
                Diagnostic::error(
                    "out-of-bounds",
                    format!(
                        "`count` must be from 1 to {MOST_DRIVERS}, found {}",
                        count.value
                    ),
                )
                .at(count.site, ""),
            ),
        }
    }
    table.remaining(diags, "of `driver`");
}

#[cfg(test)]
mod tests {
    use super::super::platform;

    fn load(text: &str) -> (super::super::model::Platform, Vec<String>) {
        let (mut platforms, diags) = platform::tests::load(text);
        let found = diags.iter().map(|d| format!("{} {}", d.code, d.message));
        (platforms.remove("cluster").unwrap(), found.collect())
    }

    #[test]
    fn jobs_are_as_the_table_says() {
        let (platform, found) = load(
            "[platform.cluster]\nexecutor = \"slurm\"\nroles = { \"*\" = \"gpu1\" }\n\
             slurm = { partition = \"gpu\", account = \"bench\", cpus = 8, gres = \"gpu:h200\", service_time = \"8h\", together = false, root = \"/shared/%w\", patience = \"1m\", driver = { partition = \"small\", time = \"12h\", count = 9 } }\n\
             [platform.cluster.host.\"gpu[1-2]\"]\ngpus = 8\n",
        );
        assert!(found.is_empty(), "{found:?}");
        let table = &platform.slurm;
        assert_eq!(table.partition.as_deref(), Some("gpu"));
        assert_eq!((table.cpus, table.patience_s), (Some(8), 60.0));
        assert_eq!(table.root, "/shared/%w");
        assert_eq!(table.gres.as_deref(), Some("gpu:h200"));
        assert_eq!(table.service_time_s, Some(28_800.0));
        assert!(!table.together);
        let driver = &table.driver;
        assert_eq!(driver.partition.as_deref(), Some("small"));
        assert_eq!((driver.time_s, driver.count), (Some(43_200.0), 9));
        assert_eq!(platform.hosts["gpu2"].address, "gpu2");
    }

    #[test]
    fn what_is_wrong_is_told() {
        let (_, found) = load(
            "[platform.cluster]\nexecutor = \"slurm\"\n\
             slurm = { partition = \"a b\", qos = \"-x\", cpus = 0, root = \"shared\", gres = \"gpu:8\", driver = { count = 0, node = \"x\" } }\n\
             ssh = { port = 22 }\n[platform.cluster.host.gpu1]\ngpus = 1\n",
        );
        for expected in [
            "bad-value `partition` must be one word",
            "bad-value `qos` must be one word",
            "out-of-bounds `cpus` must be from 1",
            "bad-value `gres` must be a kind of resource, `gpu` or `gpu:h200`, found `gpu:8`",
            "out-of-bounds `count` must be from 1 to 50",
            "bad-path `shared` is not an absolute folder",
            "unknown-key",
            "unused-key `ssh` says nothing to the executor `slurm`",
        ] {
            let told = found.iter().any(|line| line.starts_with(expected));
            assert!(told, "{expected}: {found:?}");
        }
    }
}
