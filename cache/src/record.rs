//! The immutable account of one execution. Its name is the digest of its canonical JSON, so a
//! record cannot be changed without becoming another; keys and the output digest in it always
//! follow from the manifests and outputs beside them. Readers tolerate fields they do not know.

use crate::canon::KeyEncoder;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::json::{canonical_json, finite};
use crate::manifest::Manifest;
use crate::store::now_unix_ms;
use crate::summary::Summary;
use crate::value::Value;
use crate::verdict::{Verdicts, words};
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;

/// Version of the record's format that this program writes, and the newest it reads.
pub const RECORD_SCHEMA: u32 = 1;

/// The last millisecond of the year 9999: no later time is meant by anybody.
pub(crate) const LAST_UNIX_MS: u64 = 253_402_300_799_999;

/// Whether a time that was given elsewhere is more than a day ahead of this machine's clock.
pub(crate) fn is_ahead(unix_ms: u64) -> bool {
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
    unix_ms > now_unix_ms().saturating_add(DAY_MS)
}

words! {
    /// What kind of node was executed.
    RecordKind {
        /// A measurement on the platform's hosts.
        Measure = "measure",
        /// A pure function from results to a result.
        Analysis = "analysis",
        /// A reading of facts.
        Probe = "probe",
        /// A comparison of paired results.
        Compare = "compare",
    }
}

words! {
    /// Which direction of a metric is the good one.
    Better {
        /// Less is better.
        Lower = "lower",
        /// More is better.
        Higher = "higher",
    }
}

/// Where the numbers come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of the program that wrote the record.
    pub doe_version: String,
    /// Executor by name: `local`, `ssh`, `slurm`, `ssm`.
    pub executor: String,
    /// What was found on the platform: instance type, GPU, driver and tool versions.
    #[serde(default)]
    pub facts: BTreeMap<String, Value>,
    /// Role to host name.
    #[serde(default)]
    pub hosts: BTreeMap<String, String>,
    /// Platform by name.
    pub platform: String,
    /// Whether any tool was simulated. Such numbers say nothing about hardware.
    pub simulated: bool,
}

/// One declared output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Digest of the blob.
    pub digest: Digest,
    /// The document's schema, when the rule names one.
    #[serde(default)]
    pub schema: Option<String>,
    /// Its length.
    pub size_bytes: u64,
}

/// One number taken from the outputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Which direction is the good one, when there is one.
    #[serde(default)]
    pub better: Option<Better>,
    /// Its unit (`ms`, `tokens/s`); empty for plain numbers.
    #[serde(default)]
    pub unit: String,
    /// The number.
    #[serde(serialize_with = "finite")]
    pub value: f64,
}

/// One log that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Digest of the blob.
    pub digest: Digest,
    /// `step-measure.stdout`, `service-decode.stderr`.
    pub name: String,
    /// Its length.
    pub size_bytes: u64,
}

/// One service that the execution used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceUse {
    /// Key of its configuration.
    pub key: Digest,
    /// Name in the rule.
    pub name: String,
    /// Whether it was started for this execution (and was cold), or was running already.
    pub started_for_this: bool,
}

/// Time of processors that the tree of a step used, as far as its parts were waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTime {
    /// In the kernel.
    pub system_ms: u64,
    /// In programs.
    pub user_ms: u64,
}

/// When it ran.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// End, milliseconds since the Unix epoch.
    pub ended_unix_ms: u64,
    /// Milliseconds spent in each phase: `staging`, `services`, `running`, `collecting`.
    #[serde(default)]
    pub phases: BTreeMap<String, u64>,
    /// Begin, milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
}

/// The account of one execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Key of [`Self::action_manifest`].
    pub action_key: Digest,
    /// Every input of the action key.
    pub action_manifest: Manifest,
    /// Attempt, from 1; a further one says which came before it.
    pub attempt: u32,
    /// How many attempts there may be; absent when there was no question of a further one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// By step: processor time on its host, where the executor saw it. Never in a key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cpu: BTreeMap<String, CpuTime>,
    /// Whether it was an ad-hoc execution outside the planned campaign.
    #[serde(default)]
    pub exploratory: bool,
    /// Digest of the definitions of metrics, validity and expectations that gave the verdicts.
    pub judge: Digest,
    /// What kind of node it was.
    pub kind: RecordKind,
    /// Label of the node: `//phase2:p2-efa-4k-c1`.
    pub label: String,
    /// Name of its layer: `L2-EFA`; empty when it has none.
    #[serde(default)]
    pub layer: String,
    /// Logs that were kept.
    #[serde(default)]
    pub logs: Vec<Log>,
    /// Metrics by name.
    #[serde(default)]
    pub metrics: BTreeMap<String, Metric>,
    /// Why not, for people.
    #[serde(default)]
    pub not_reusable_because: Option<String>,
    /// [`outputs_digest`] of the outputs: what downstream keys see of this result.
    pub output_digest: Digest,
    /// Outputs by name.
    #[serde(default)]
    pub outputs: BTreeMap<String, Output>,
    /// Package of its plan: `phase2`.
    pub plan: String,
    /// The record of the attempt before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_attempt: Option<Digest>,
    /// Where the numbers come from.
    pub provenance: Provenance,
    /// When the record was made, milliseconds since the Unix epoch. Orders the records of one
    /// label or key: the greatest is the latest. Take it from `Store::stamp_unix_ms`.
    pub recorded_unix_ms: u64,
    /// The record whose outputs were judged again, when nothing was executed.
    #[serde(default)]
    pub rejudged_from: Option<Digest>,
    /// Whether the result may stand for another execution, as far as the engine knows. Only
    /// together with good verdicts does it allow reuse.
    pub reusable: bool,
    /// Rule it was measured by: `serving.disaggregated`.
    pub rule: String,
    /// Run that it belongs to.
    pub run_id: String,
    /// Series of single measurements by name, in the order measured.
    #[serde(default, serialize_with = "finite_series")]
    pub samples: BTreeMap<String, Vec<f64>>,
    /// Version of this format: [`RECORD_SCHEMA`].
    pub schema: u32,
    /// Services that were used.
    #[serde(default)]
    pub services: Vec<ServiceUse>,
    /// Settings of the pattern by name, for tables; the key has them through the manifests.
    #[serde(default)]
    pub settings: BTreeMap<String, Value>,
    /// Key of [`Self::spec_manifest`].
    pub spec_key: Digest,
    /// Every input of the spec key.
    pub spec_manifest: Manifest,
    /// Tags of the pattern.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Text fields that the rule offers beside its metrics, by name.
    #[serde(default)]
    pub texts: BTreeMap<String, String>,
    /// When it ran. A judgement of old outputs keeps the times of their execution.
    pub timings: Timings,
    /// Did it run, may the numbers be used, are they as expected.
    pub verdicts: Verdicts,
}

fn finite_series<S: Serializer>(
    series: &BTreeMap<String, Vec<f64>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    for (name, values) in series {
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            return Err(serde::ser::Error::custom(format!(
                "series `{name}`: a finite number was expected, not {value}"
            )));
        }
    }
    series.serialize(serializer)
}

/// One digest over all outputs: names and contents, nothing else.
pub fn outputs_digest(outputs: &BTreeMap<String, Output>) -> Digest {
    let mut key = KeyEncoder::new("doe.outputs", 1);
    for (name, output) in outputs {
        key.digest(name, &output.digest);
    }
    key.finish()
}

/// A record and its file, so that it is written once only: the digest is that of these bytes.
#[derive(Debug, Clone)]
pub struct Encoded {
    pub(crate) digest: Digest,
    pub(crate) bytes: Vec<u8>,
    pub(crate) record: Record,
}

impl Encoded {
    /// Digest of the file.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What it says.
    pub fn record(&self) -> &Record {
        &self.record
    }
}

impl Record {
    /// Fills in what follows from the rest: both keys and the output digest.
    pub fn seal(&mut self) {
        self.spec_key = self.spec_manifest.key();
        self.action_key = self.action_manifest.key();
        self.output_digest = outputs_digest(&self.outputs);
    }

    /// Labels and output digests of the results that it was made from, as its spec manifest has
    /// them.
    pub fn needs(&self) -> Vec<(String, Digest)> {
        let needs = self.spec_manifest.walk().filter_map(|(path, entry)| {
            let label = path.strip_prefix("need.")?.strip_suffix(".output")?;
            let output = entry.value.as_str()?.parse().ok()?;
            Some((label.to_owned(), output))
        });
        needs.collect()
    }

    /// Whether the record, as it stands, may ever be reused.
    pub fn usable(&self) -> bool {
        self.reusable && self.verdicts.good()
    }

    /// The canonical JSON, which is the content of its file.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the record breaks a rule of the format.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let refuse = |what: &str| {
            Err(Error::invalid(format!(
                "the record of `{}` {what}",
                self.label
            )))
        };
        if self.schema != RECORD_SCHEMA {
            return refuse(&format!(
                "has schema {}, this program writes {RECORD_SCHEMA}",
                self.schema
            ));
        }
        self.check()?;
        // Fields are declared in the order of their names, here and in what is below, and maps are
        // sorted: what is written as it stands is canonical.
        // Most records fit, and none has to grow from nothing.
        let mut bytes = Vec::with_capacity(1 << 12);
        if let Err(e) = serde_json::to_writer(&mut bytes, self) {
            return refuse(&format!("cannot be written: {e}"));
        }
        debug_assert!(canonical_json(self).is_ok_and(|canonical| bytes == canonical));
        Ok(bytes)
    }

    /// Whether keys and output digest follow from what is beside them.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what does not.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: &str| {
            Err(Error::invalid(format!(
                "the record of `{}` {what}",
                self.label
            )))
        };
        if self.label.is_empty() {
            return refuse("has no label");
        }
        if self.spec_key != self.spec_manifest.key() {
            return refuse("has a spec key that does not follow from its manifest");
        }
        if self.action_key != self.action_manifest.key() {
            return refuse("has an action key that does not follow from its manifest");
        }
        if self.output_digest != outputs_digest(&self.outputs) {
            return refuse("has an output digest that does not follow from its outputs");
        }
        if self.latest_unix_ms() > LAST_UNIX_MS {
            return refuse("has a time beyond the year 9999");
        }
        Ok(())
    }

    /// Whether a record that was made elsewhere may come in: [`Self::check`], and no time of it is
    /// so far ahead of this machine's that it would stand above all that is still to come.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what is wrong.
    pub(crate) fn check_foreign(&self) -> Result<()> {
        self.check()?;
        if is_ahead(self.latest_unix_ms()) {
            return Err(Error::invalid(format!(
                "the record of `{}` has a time more than a day ahead of this machine's clock",
                self.label
            )));
        }
        Ok(())
    }

    fn latest_unix_ms(&self) -> u64 {
        let run = &self.timings;
        let ran = run.started_unix_ms.max(run.ended_unix_ms);
        ran.max(self.recorded_unix_ms)
    }

    /// The digest that names the record.
    ///
    /// # Errors
    /// As [`Self::to_bytes`].
    pub fn id(&self) -> Result<Digest> {
        self.to_bytes().map(Digest::of)
    }

    /// The record as it is stored.
    ///
    /// # Errors
    /// As [`Self::to_bytes`].
    pub fn encode(self) -> Result<Encoded> {
        let bytes = self.to_bytes()?;
        Ok(Encoded {
            digest: Digest::of(&bytes),
            bytes,
            record: self,
        })
    }

    /// Reads a record; the caller has checked the digest of the bytes.
    ///
    /// # Errors
    /// [`Error::SchemaTooNew`]; [`Error::Corrupt`] when the bytes are not a record.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            schema: u32,
        }
        let corrupt = |e: serde_json::Error| Error::Corrupt {
            what: "a record".to_owned(),
            detail: e.to_string(),
            quarantined: None,
        };
        let head: Head = serde_json::from_slice(bytes).map_err(corrupt)?;
        if head.schema > RECORD_SCHEMA {
            return Err(Error::SchemaTooNew {
                what: "record",
                found: head.schema,
                supported: RECORD_SCHEMA,
            });
        }
        serde_json::from_slice(bytes).map_err(corrupt)
    }

    /// What `decide` needs to know of it. `record` is its digest.
    pub fn summary(&self, record: Digest) -> Summary {
        Summary {
            record,
            label: self.label.as_str().into(),
            spec_key: self.spec_key,
            action_key: self.action_key,
            judge: self.judge,
            output_digest: self.output_digest,
            simulated: self.provenance.simulated,
            recorded_unix_ms: self.recorded_unix_ms,
            ended_unix_ms: self.timings.ended_unix_ms,
            duration_ms: self.duration_ms(),
            execution: self.verdicts.execution.status,
            validity: self.verdicts.validity.status,
            criterion: self.verdicts.criterion.status,
            reusable: self.reusable,
        }
    }

    /// Milliseconds from begin to end.
    pub fn duration_ms(&self) -> u64 {
        let Timings {
            started_unix_ms: start,
            ended_unix_ms: end,
            ..
        } = self.timings;
        end.saturating_sub(start)
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
pub(crate) mod tests;
