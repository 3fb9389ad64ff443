//! The shipped campaigns load against the shipped rules, whole and without warnings.

use std::path::Path;

use doe::error::Diagnostic;
use doe::plan::model::Workspace;
use doe::plan::workspace::LoadOptions;

fn text(found: &Diagnostic) -> String {
    let sites: Vec<_> = found.sites.iter().map(|(site, note)| format!("  {} {note}", site.short())).collect();
    format!("{:?} {} {}\n{}\n  {:?}\n", found.severity, found.code, found.message, sites.join("\n"), found.hints)
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
        known_instruments: ["measure openai", "proxy", "analyze tpot-separation", "analyze bimodality", "analyze proxy-overhead"].map(str::to_owned).into_iter().chain(
            ["fi_info", "iperf3"].map(|t| format!("parse {t}"))).collect(),
        ..LoadOptions::default()
    };
    let t = std::time::Instant::now();
    match Workspace::load(root.path(), &options) {
        Ok(ws) => {
            println!("{:?}", t.elapsed());
            let t = std::time::Instant::now();
            let _ = Workspace::load(root.path(), &options);
            println!("again {:?}", t.elapsed());
            for w in &ws.warnings { println!("{}", text(w)); }
            for p in ws.plans.values() { println!("{} {} {:?}", p.package, p.patterns.len(), p.compares.iter().map(|c| (c.id.clone(), c.groups.len())).collect::<Vec<_>>()); }
        }
        Err(e) => panic!("{}\n{}", e.message, e.diagnostics.iter().map(text).collect::<Vec<_>>().join("\n")),
    }
}
