//! The graph that every tool is given: `n` tasks in layers of about the square root of `n`, each
//! needing three of the layer before (fewer where they coincide); a task writes one small file.

use std::fmt::Write;
use std::path::Path;

/// Tasks by layer; a task is its place in the layer.
pub struct Dag {
    layers: Vec<usize>,
}

impl Dag {
    /// The graph of `n` tasks.
    pub fn new(n: usize) -> Self {
        let width = ((n as f64).sqrt().round() as usize).max(10);
        let mut layers = vec![width.min(n); n / width.min(n).max(1)];
        let left = n - layers.iter().sum::<usize>();
        layers.extend((left > 0).then_some(left));
        Self { layers }
    }

    fn needs(&self, layer: usize, at: usize) -> Vec<usize> {
        let Some(before) = layer.checked_sub(1).map(|before| self.layers[before]) else {
            return Vec::new();
        };
        let mut needs: Vec<usize> = [(7, 1), (13, 3), (29, 5)]
            .map(|(factor, offset)| (at * factor + offset) % before)
            .to_vec();
        needs.sort_unstable();
        needs.dedup();
        needs
    }

    fn tasks(&self) -> impl Iterator<Item = (usize, usize)> {
        let layers = self.layers.iter().enumerate();
        layers.flat_map(|(layer, &width)| (0..width).map(move |at| (layer, at)))
    }

    fn files(&self, layer: usize, at: usize) -> String {
        let needs = self.needs(layer, at).into_iter();
        needs.fold(String::new(), |mut text, need| {
            let _ = write!(text, " out/t{}_{need}", layer - 1);
            text
        })
    }

    /// For ninja, samurai and n2.
    pub fn write_ninja(&self, dir: &Path) -> std::io::Result<()> {
        let mut text = "rule t\n  command = echo $id > $out\n".to_owned();
        for (layer, at) in self.tasks() {
            let files = self.files(layer, at);
            let _ = writeln!(
                text,
                "build out/t{layer}_{at}: t{files}\n  id = t{layer}_{at}"
            );
        }
        std::fs::create_dir_all(dir.join("out"))?;
        std::fs::write(dir.join("build.ninja"), text)
    }

    /// For make.
    pub fn write_make(&self, dir: &Path) -> std::io::Result<()> {
        let mut text = "all:".to_owned();
        for (layer, at) in self.tasks() {
            let _ = write!(text, " out/t{layer}_{at}");
        }
        text.push('\n');
        for (layer, at) in self.tasks() {
            let files = self.files(layer, at);
            let _ = writeln!(
                text,
                "out/t{layer}_{at}:{files}\n\t@echo t{layer}_{at} > $@"
            );
        }
        std::fs::create_dir_all(dir.join("out"))?;
        std::fs::write(dir.join("Makefile"), text)
    }

    /// For `doe`: a workspace whose plan has a layer for each layer. `word` is the setting of one
    /// task in the middle that no other has: to change it is to edit one node.
    pub fn write_workspace(&self, dir: &Path, word: &str) -> std::io::Result<()> {
        std::fs::create_dir_all(dir.join("rules"))?;
        std::fs::create_dir_all(dir.join("plans"))?;
        std::fs::write(dir.join("doe.toml"), WORKSPACE)?;
        std::fs::write(dir.join("rules/trivial.toml"), RULES)?;
        self.write_plan(dir, word)
    }

    /// The plan alone.
    pub fn write_plan(&self, dir: &Path, word: &str) -> std::io::Result<()> {
        let mut text =
            "[plan]\ntitle = \"as other build tools have it\"\nrules = [\"trivial\"]\n".to_owned();
        for (layer, &width) in self.layers.iter().enumerate() {
            let _ = writeln!(
                text,
                "\n[[layer]]\nid = \"L{layer}\"\nrule = \"trivial.echo\"\n\
                 pattern = \"t{layer}_{{{{ i }}}}\"\nsettings = {{ layer = {layer} }}"
            );
            if let Some(before) = layer.checked_sub(1) {
                let of = self.layers[before];
                let need =
                    |f: usize, o: usize| format!("\"t{before}_{{{{ (i * {f} + {o}) % {of} }}}}\"");
                let _ = writeln!(
                    text,
                    "needs = [{}, {}, {}]",
                    need(7, 1),
                    need(13, 3),
                    need(29, 5)
                );
            }
            if layer == self.layers.len() / 2 {
                let _ = writeln!(
                    text,
                    "[[layer.override]]\nwhen = \"i == 5\"\nsettings = {{ word = \"{word}\" }}"
                );
            }
            let list: Vec<String> = (0..width).map(|at| at.to_string()).collect();
            let _ = writeln!(text, "[layer.matrix]\ni = [{}]", list.join(", "));
        }
        std::fs::write(dir.join("plans/peers.toml"), text)
    }
}

const WORKSPACE: &str = "\
[workspace]
platform = \"here\"

[platform.here]
executor = \"local\"
roles = { \"*\" = \"here\" }
[platform.here.host.here]
address = \"127.0.0.1\"
";

const RULES: &str = "\
[echo]
kind = \"analysis\"
doc = \"Writes its own name, as the other tools do.\"
param.layer = { type = \"int\", min = 0, doc = \"which layer\" }
param.i = { type = \"int\", min = 0, doc = \"which task of it\" }
param.word = { type = \"str\", default = \"\", doc = \"something to edit\" }
[[echo.step]]
name = \"echo\"
timeout = \"1m\"
run = \"echo t{{ layer }}_{{ i }} {{ word }} > {{ out.text }}\"
[echo.output]
text = { path = \"text\" }
";
