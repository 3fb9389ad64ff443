//! How scripts get to the hosts, and what they find there.

use super::Field;
use crate::plan::model::{SlurmTable, SshTable, SsmTable};

pub(super) fn reached(all: &mut Vec<Field>) {
    fields!(all, "SshTable", SshTable, w => w.platform.ssh;
        user: "", |it, d| *it = Some(d.word.clone());
        port: "", |it, d| *it = Some(d.count as u16);
        config: "", |it, d| *it = Some(d.word.clone());
        identity: "", |it, d| *it = Some(d.word.clone());
        known_hosts: "", |it, d| *it = Some(d.word.clone());
        jump: "", |it, d| *it = Some(d.word.clone());
        root: "", |it, d| *it = d.word.clone();
        patience_s: "", |it, d| *it = d.real;
        path: "AS", |it, d| it.push(d.word.clone());
        doe: "", |it, d| *it = Some(d.word.clone());
    );
    fields!(all, "SsmTable", SsmTable, w => w.platform.ssm;
        region: "", |it, d| *it = Some(d.word.clone());
        endpoint: "", |it, d| *it = Some(d.word.clone());
        s3_endpoint: "", |it, d| *it = Some(d.word.clone());
        profile: "", |it, d| *it = Some(d.word.clone());
        credentials: "", |it, d| *it = Some(d.word.clone());
        bucket: "", |it, d| *it = format!("s3://{}-bucket", d.word).parse().ok();
        tag: "", |it, d| *it = Some(d.word.clone());
        document: "", |it, d| *it = Some(d.word.clone());
        root: "", |it, d| *it = d.word.clone();
        patience_s: "", |it, d| *it = d.real;
        path: "AS", |it, d| it.push(d.word.clone());
        doe: "", |it, d| *it = Some(d.word.clone());
    );
    fields!(all, "SlurmTable", SlurmTable, w => w.platform.slurm;
        partition: "", |it, d| *it = Some(d.word.clone());
        account: "", |it, d| *it = Some(d.word.clone());
        qos: "", |it, d| *it = Some(d.word.clone());
        reservation: "", |it, d| *it = Some(d.word.clone());
        constraint: "AS", |it, d| *it = Some(d.word.clone());
        cpus: "AS", |it, d| *it = Some(d.count);
        config: "", |it, d| *it = Some(d.word.clone());
        gres: "AS", |it, d| *it = Some(d.word.clone());
        service_time_s: "", |it, d| *it = Some(d.real);
        together: "", |it, d| *it = d.flag;
        driver: "", |it, d| it.count = d.count;
        root: "", |it, d| *it = d.word.clone();
        patience_s: "", |it, d| *it = d.real;
        path: "AS", |it, d| it.push(d.word.clone());
        doe: "", |it, d| *it = Some(d.word.clone());
    );
}
