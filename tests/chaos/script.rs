//! What a timeline does, drawn from its seed before anything is done. Every step draws from a
//! stream of its own, so no step, and nothing that happens, has a say in what another one does.

use doe_cache::fault::Point;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::world::{CELLS, Edit, Mode, SERVED, SUMS};

/// Steps of a timeline.
pub const STEPS: usize = 7;

/// Draws of one step of one seed.
pub struct Random(ChaCha8Rng);

impl Random {
    pub fn of(seed: u64, step: usize) -> Self {
        let mut draws = ChaCha8Rng::seed_from_u64(seed);
        draws.set_stream(step as u64);
        Self(draws)
    }

    pub fn range(&mut self, range: std::ops::Range<i64>) -> i64 {
        let span = (range.end - range.start) as u64;
        range.start + (self.0.next_u64() % span) as i64
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64 <= probability
    }

    pub fn choose<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.range(0..list.len() as i64) as usize]
    }

    fn ms(&mut self, below: i64) -> u64 {
        self.range(0..below) as u64
    }

    /// One of a list that is not known yet.
    fn pick(&mut self) -> Pick {
        Pick(self.0.next_u64())
    }

    pub fn edit(&mut self) -> Edit {
        let cell = self.range(0..CELLS as i64) as usize;
        match self.range(0..7) {
            0..3 => Edit::Value(cell, self.range(0..4)),
            3 => {
                let modes = [Mode::Ok, Mode::Ok, Mode::Fail, Mode::Invalid];
                Edit::Mode(cell, self.choose(&modes))
            }
            4 => Edit::Sum(self.range(0..SUMS.len() as i64) as usize, self.range(0..3)),
            5 => Edit::Extra(
                self.range(0..SERVED.len() as i64) as usize,
                self.range(1..3),
            ),
            _ => Edit::Comment,
        }
    }

    /// A point, one of its first passages, and what happens there.
    fn fault(&mut self, passages: i64) -> String {
        let point = self.choose(Point::ALL);
        let count = self.range(1..passages);
        let on = if self.chance(0.2) { "+" } else { "" };
        let percent = self.range(0..100);
        let action = match self.range(0..10) {
            0..4 if point.tears() => format!("torn={percent}"),
            0..7 => "kill".to_string(),
            _ => "error".to_string(),
        };
        format!("{point}:{count}{on}:{action}")
    }
}

/// Which of a list, whatever its length turns out to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pick(u64);

impl Pick {
    pub fn of<T>(self, list: &[T]) -> Option<&T> {
        let at = self.0.checked_rem(list.len() as u64)?;
        list.get(at as usize)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    pub seed: u64,
    /// Whether the workspace lies on a file system of its own, whose power may be cut.
    pub on_disk: bool,
    pub steps: Vec<Step>,
    /// How the index is made again in the end.
    pub last: Rebuild,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub what: What,
    /// What is disturbed is mostly a campaign that changes.
    pub then: Option<Edit>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    Edit(Edit),
    Build,
    /// A build of which `doe` is killed.
    KillDoe {
        after_ms: u64,
    },
    /// A build of which a step is killed.
    KillStep {
        after_ms: u64,
    },
    /// A build of which a service is killed, by itself or with the wrapper that would tell.
    KillService {
        after_ms: u64,
        whole: bool,
    },
    FaultyBuild {
        fault: String,
    },
    /// A build, and another command at once.
    TwoAtOnce {
        lag_ms: u64,
        other: &'static [&'static str],
    },
    Collect,
    Clock {
        days: i64,
    },
    /// A byte flips, or half of a file goes, and the store is verified.
    Damage {
        kind: &'static str,
        file: Pick,
        bit: Option<(u64, u8)>,
    },
    /// The end of a file is missing, and a build meets it.
    Cut {
        kind: &'static str,
        file: Pick,
        percent: u64,
    },
    Rebuild(Rebuild),
    Carry {
        export: String,
        import: String,
    },
    Care {
        care: Care,
        fault: String,
    },
    PowerCut {
        after_ms: u64,
    },
}

/// What a build may meet; the first is another build.
pub const OTHERS: &[&[&str]] = &[
    &["build", "//chaos:all"],
    &["cache", "gc", "--delete"],
    &["cache", "verify"],
    &["cache", "rebuild"],
];

/// How the index goes, and how it comes back.
#[derive(Debug, Clone, PartialEq)]
pub struct Rebuild {
    pub emptied: bool,
    pub maker: [&'static str; 2],
    /// The first try meets this.
    pub fault: Option<String>,
}

/// A command that looks after the store.
#[derive(Debug, Clone, PartialEq)]
pub enum Care {
    Collect,
    CollectOld,
    Verify,
    Rebuild,
    Refuse { record: Pick, undo: String },
}

impl Script {
    pub fn of(seed: u64) -> Self {
        let on_disk = seed % 12 == 5;
        let mut last = Random::of(seed, STEPS);
        Self {
            seed,
            on_disk,
            steps: (0..STEPS).map(|at| step(seed, at, on_disk)).collect(),
            last: rebuild(&mut last),
        }
    }
}

fn step(seed: u64, at: usize, on_disk: bool) -> Step {
    let mut random = Random::of(seed, at);
    let what = what(&mut random);
    let then = random.chance(0.5).then(|| random.edit());
    let cut = random.chance(0.3) || at == 2;
    let after_ms = random.ms(500);
    Step {
        what: match on_disk && cut {
            true => What::PowerCut { after_ms },
            false => what,
        },
        then,
    }
}

fn what(random: &mut Random) -> What {
    match random.range(0..30) {
        0..3 => What::Edit(random.edit()),
        3..5 => What::Build,
        5..9 => What::KillDoe {
            after_ms: random.ms(500),
        },
        9..15 => What::FaultyBuild {
            fault: random.fault(12),
        },
        15 | 16 => What::TwoAtOnce {
            lag_ms: random.ms(100),
            other: random.choose(OTHERS),
        },
        17 | 18 => What::KillStep {
            after_ms: random.ms(200),
        },
        19 | 20 => What::KillService {
            after_ms: random.ms(200),
            whole: random.chance(0.4),
        },
        21 => What::Collect,
        22 => What::Clock {
            days: random.range(-400..400),
        },
        23 | 24 => What::Damage {
            kind: random.choose(&["cas", "records", "links", "runs", "imports"]),
            file: random.pick(),
            bit: random
                .chance(0.7)
                .then(|| (random.0.next_u64(), random.range(0..8) as u8)),
        },
        25 => What::Cut {
            kind: random.choose(&["cas", "records", "links", "runs", "intents", "events"]),
            file: random.pick(),
            percent: random.ms(100),
        },
        26 => What::Rebuild(rebuild(random)),
        27 => What::Carry {
            export: random.fault(6),
            import: random.fault(6),
        },
        _ => What::Care {
            care: match random.range(0..6) {
                0 => Care::Collect,
                1 => Care::CollectOld,
                2 => Care::Verify,
                3 => Care::Rebuild,
                _ => Care::Refuse {
                    record: random.pick(),
                    undo: random.fault(6),
                },
            },
            fault: random.fault(6),
        },
    }
}

fn rebuild(random: &mut Random) -> Rebuild {
    let emptied = random.chance(0.5);
    let maker = random.choose(&[["cache", "rebuild"], ["cache", "verify"]]);
    let fault = random.fault(6);
    Rebuild {
        emptied,
        maker,
        fault: random.chance(0.5).then_some(fault),
    }
}

/// A seed says everything, and each step of it by itself.
#[test]
fn a_script_is_its_seed() {
    for seed in 1..300 {
        let script = Script::of(seed);
        assert_eq!(script, Script::of(seed));
        // The other way round, and after other draws: nobody's draws are anybody else's.
        for (at, drawn) in script.steps.iter().enumerate().rev() {
            assert_eq!(step(seed, at, script.on_disk), *drawn);
        }
        assert_ne!(script.steps, Script::of(seed + 1).steps);
    }
}

/// The timelines of CI have every ingredient in them.
#[test]
fn the_first_fifty_have_everything() {
    let scripts: Vec<Script> = (1..=50).map(Script::of).collect();
    let text = format!("{scripts:?}");
    for word in [
        "Edit",
        "Build",
        "KillDoe",
        "KillStep",
        "KillService",
        "FaultyBuild",
        "TwoAtOnce",
        "Collect",
        "Clock",
        "Damage",
        "Cut",
        "Rebuild",
        "Carry",
        "CollectOld",
        "Verify",
        "Refuse",
        "PowerCut",
        ":kill",
        ":error",
        ":torn=",
        "Value",
        "Mode",
        "Sum",
        "Extra",
        "Comment",
    ] {
        assert!(text.contains(word), "no {word} in the first fifty");
    }
    for point in Point::ALL {
        assert!(
            text.contains(&format!("\"{point}:")),
            "no {point} in the first fifty"
        );
    }
}
