//! Text as the simulated model sees it: a token is a word between white space. What the model
//! says at temperature 0 is a function of model and prompt alone, so that two servers, or a pair
//! of them, give the same answer to the same prompt.

use std::hash::{DefaultHasher, Hash, Hasher};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::measure::words::WORDS;

/// A prompt in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Prompt {
    /// Text.
    Words(String),
    /// Token ids.
    Ids(Vec<u64>),
}

impl Prompt {
    /// How many tokens it has.
    pub(super) fn tokens(&self) -> u64 {
        match self {
            Prompt::Words(text) => count_words(text),
            Prompt::Ids(ids) => ids.len() as u64,
        }
    }

    /// The id of each token.
    pub(super) fn ids(&self) -> Vec<u64> {
        match self {
            Prompt::Words(text) => text
                .split_ascii_whitespace()
                .map(|word| word_id(word.as_bytes()))
                .collect(),
            Prompt::Ids(ids) => ids.clone(),
        }
    }

    /// Digest of the whole.
    pub(super) fn digest(&self) -> u64 {
        match self {
            Prompt::Words(text) => {
                let mut hasher = blake3::Hasher::new();
                for word in text.split_ascii_whitespace() {
                    hasher.update(word.as_bytes()).update(b" ");
                }
                let digest = hasher.finalize();
                let (head, _) = digest.as_bytes().split_at(8);
                head.iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
            }
            Prompt::Ids(ids) => digest(ids),
        }
    }

    /// Chained digests of the full blocks: equal ones have equal text up to their end.
    pub(super) fn blocks(&self, block: u64) -> Vec<u64> {
        let ids = self.ids();
        let mut chain = 0;
        let full = ids.chunks_exact(block.max(1) as usize);
        full.map(|ids| {
            chain = digest(&(chain, ids));
            chain
        })
        .collect()
    }
}

/// Words between ASCII white space, counted without looking at characters: prompts of megabytes
/// are counted several times a request.
fn count_words(text: &str) -> u64 {
    let mut words = 0;
    let mut outside = true;
    for byte in text.bytes() {
        let space = byte.is_ascii_whitespace();
        words += u64::from(outside && !space);
        outside = space;
    }
    words
}

/// A word's id below the size of the vocabulary (FNV-1a, 64 bits).
fn word_id(word: &[u8]) -> u64 {
    let hash = word.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash % 151_643
}

fn digest(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// What the model says, token by token, without an end.
pub(super) struct Speech(ChaCha8Rng);

impl Speech {
    /// The answer to a prompt; `sampled` varies it where the temperature is not 0.
    pub(super) fn new(model: &str, prompt: u64, sampled: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(digest(&(model, prompt, sampled))))
    }

    /// The next token: a word with its space before.
    pub(super) fn next(&mut self) -> &'static str {
        WORDS[(self.0.next_u32() & 0xff) as usize]
    }

    /// How many tokens this speech has when it may end by itself: each ends it with a chance of
    /// one in five hundred, from `least` on. `None` when it has more than `most`.
    pub(super) fn natural_end(
        model: &str,
        prompt: u64,
        sampled: u64,
        least: u64,
        most: u64,
    ) -> Option<u64> {
        let mut rng = ChaCha8Rng::seed_from_u64(digest(&(model, prompt, sampled)));
        rng.set_stream(1);
        (1..=most).find(|n| rng.next_u32() < u32::MAX / 500 && *n >= least.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_tokens() {
        let prompt = Prompt::Words("a  b\nc ".into());
        assert_eq!(prompt.tokens(), 3);
        assert_eq!(prompt.ids().len(), 3);
        assert_eq!(prompt.digest(), Prompt::Words("a b c".into()).digest());
        assert_ne!(prompt.digest(), Prompt::Words("a b d".into()).digest());
    }

    #[test]
    fn blocks_are_equal_as_far_as_the_text_is() {
        let blocks = |text: &str| Prompt::Words(text.into()).blocks(2);
        let (a, b) = (blocks("a b c d e"), blocks("a b x d e"));
        assert_eq!(a.len(), 2);
        assert_eq!(a[0], b[0]);
        assert_ne!(a[1], b[1]);
        assert_ne!(blocks("a b a b")[0], blocks("a b a b")[1], "chained");
    }

    #[test]
    fn the_same_prompt_gets_the_same_answer_which_ends_now_and_then() {
        let say = |sampled| {
            let mut speech = Speech::new("m", 7, sampled);
            (0..20).map(|_| speech.next()).collect::<Vec<_>>()
        };
        assert_eq!(say(0), say(0));
        assert_ne!(say(0), say(1));
        let ends = (0..1000).filter(|p| Speech::natural_end("m", *p, 0, 0, 128).is_some());
        // 1 - (499/500)^128 is 0.226; six standard deviations of 1000 draws are 0.08.
        assert!((146..306).contains(&ends.count()));
        assert!((0..1000).all(|p| Speech::natural_end("m", p, 0, 50, 128).is_none_or(|n| n >= 50)));
    }
}
