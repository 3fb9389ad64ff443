//! The shipped campaigns load against the shipped rules, whole and without warnings.

use std::path::Path;

use doe::error::Diagnostic;
use doe::plan::model::Workspace;
use doe::plan::workspace::LoadOptions;

const INSTRUMENTS: [&str; 14] = [
    "measure openai",
    "proxy",
    "analyze tpot-separation",
    "analyze bimodality",
    "analyze proxy-overhead",
    "parse fi_info",
    "parse fi_rdm_bw",
    "parse fi_pingpong",
    "parse iperf3",
    "parse nccl-tests",
    "parse nvidia-smi",
    "parse nixlbench",
    "parse kvbench",
    "parse ucx_perftest",
];

fn text(found: &Diagnostic) -> String {
    let sites: Vec<_> = found
        .sites
        .iter()
        .map(|(site, note)| format!("  {} {note}", site.short()))
        .collect();
    format!(
        "{:?} {} {}\n{}\n  {:?}\n",
        found.severity,
        found.code,
        found.message,
        sites.join("\n"),
        found.hints
    )
}

#[test]
fn shipped() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("doe.toml"), "").unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["plans", "rules"] {
        std::os::unix::fs::symlink(here.join(folder), root.path().join(folder)).unwrap();
    }
    let options = LoadOptions {
        known_instruments: INSTRUMENTS.map(str::to_owned).to_vec(),
        ..LoadOptions::default()
    };
    let t = std::time::Instant::now();
    match Workspace::load(root.path(), &options) {
        Ok(ws) => {
            println!("{:?}", t.elapsed());
            let t = std::time::Instant::now();
            let _ = Workspace::load(root.path(), &options);
            println!("again {:?}", t.elapsed());
            for w in &ws.warnings {
                println!("{}", text(w));
            }
            for p in ws.plans.values() {
                println!(
                    "{} {} {:?}",
                    p.package,
                    p.patterns.len(),
                    p.compares
                        .iter()
                        .map(|c| (c.id.clone(), c.groups.len()))
                        .collect::<Vec<_>>()
                );
            }
        }
        Err(e) => panic!(
            "{}\n{}",
            e.message,
            e.diagnostics
                .iter()
                .map(text)
                .collect::<Vec<_>>()
                .join("\n")
        ),
    }
}
