//! vLLM's ExampleConnector: KV cache passed through a folder that both servers see. A prompt's
//! cache is there when a folder with the name of its whole blocks is, whoever left it; only whole
//! blocks are found, and what is looked for is rounded once more often than what is left.

use std::path::PathBuf;

use super::engine::Stored;
use crate::measure::sim::profile::Link;

/// The folder, and what it takes to write to it and to read from it.
pub(super) struct Storage {
    path: PathBuf,
    /// Tokens of one cache block.
    block: u64,
    bytes_per_token: f64,
    /// One file a layer.
    layers: u64,
    bytes_per_s: f64,
    latency_s: f64,
}

impl Storage {
    pub(super) fn new(
        path: &str,
        block: u64,
        bytes_per_token: f64,
        layers: u64,
        link: &Link,
    ) -> Self {
        Self {
            path: path.into(),
            block,
            bytes_per_token,
            layers,
            bytes_per_s: link.bandwidth_gbps * 1e9 / 8.0,
            latency_s: link.latency_us * 1e-6,
        }
    }

    /// What becomes of a prompt: it is read from the folder, or computed and left there.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(super) fn take(&self, ids: &[u64]) -> std::io::Result<Stored> {
        let tokens = ids.len() as u64;
        // Twice the last token is taken off: once here, once in the rounding.
        let sought = self.whole(tokens.saturating_sub(1));
        if self.folder(ids, sought).exists() {
            return Ok(Stored {
                tokens: sought,
                seconds: self.seconds(sought),
            });
        }
        let left = self.whole(tokens);
        let folder = self.folder(ids, left);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("simulated"), format!("{left} tokens\n"))?;
        Ok(Stored {
            tokens: 0,
            seconds: self.seconds(left),
        })
    }

    /// Whole blocks before the last token.
    fn whole(&self, tokens: u64) -> u64 {
        tokens.saturating_sub(1) / self.block * self.block
    }

    fn seconds(&self, tokens: u64) -> f64 {
        let bytes = tokens as f64 * self.bytes_per_token;
        match tokens {
            0 => 0.0,
            _ => self.layers as f64 * self.latency_s + bytes / self.bytes_per_s,
        }
    }

    /// No server but a simulated one takes such a name for one of its own.
    fn folder(&self, ids: &[u64], tokens: u64) -> PathBuf {
        let mut hasher = blake3::Hasher::new();
        for id in &ids[..tokens as usize] {
            hasher.update(&id.to_le_bytes());
        }
        let name = hasher.finalize().to_hex();
        self.path.join(format!("simulated-{}", &name[..32]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(path: &std::path::Path) -> Storage {
        let link = Link {
            bandwidth_gbps: 8.0,
            latency_us: 100.0,
        };
        Storage::new(path.to_str().unwrap(), 128, 1000.0, 2, &link)
    }

    /// What real vLLM 0.32 counted for the same lengths (`external_kv_transfer`).
    #[test]
    fn whole_blocks_are_found_and_one_length_in_a_block_never_is() {
        let dir = tempfile::tempdir().unwrap();
        let (producer, consumer) = (storage(dir.path()), storage(dir.path()));
        for (tokens, moved) in [
            (400, 384),
            (1200, 1152),
            (401, 384),
            (386, 384),
            (81, 0),
            (385, 0),
        ] {
            let ids: Vec<u64> = (0..tokens).map(|i| i * 7 + tokens).collect();
            let first = producer.take(&ids).unwrap();
            assert_eq!(first.tokens, 0, "{tokens}: computed by the first");
            let second = consumer.take(&ids).unwrap();
            assert_eq!(second.tokens, moved, "{tokens}");
        }
    }

    #[test]
    fn time_is_that_of_the_files_and_of_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let storage = storage(dir.path());
        let ids: Vec<u64> = (0..400).collect();
        let want = 2.0 * 100e-6 + 384.0 * 1000.0 / 1e9;
        for _ in 0..2 {
            let took = storage.take(&ids).unwrap().seconds;
            assert!((took - want).abs() < 1e-12, "{took}");
        }
        assert_eq!(storage.take(&[1, 2]).unwrap().seconds, 0.0);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(storage(&file).take(&[1; 300]).is_err());
    }
}
