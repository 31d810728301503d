//! Taking turns, and what comes of it.

use std::time::{Duration, Instant};

use cista_tests::error::HarnessError;

/// Something to measure: it does its work, and says how long the part that counts took.
pub(super) struct Contestant<'a> {
    /// Its name in the table.
    pub(super) name: String,
    run: Box<dyn FnMut() -> Result<Duration, HarnessError> + 'a>,
}

impl<'a> Contestant<'a> {
    /// A contestant that writes much: what another one left to be written back is written before its turn.
    pub(super) fn writing(
        name: &str,
        mut run: impl FnMut() -> Result<Duration, HarnessError> + 'a,
    ) -> Self {
        Self::new(name, move || {
            rustix::fs::sync();
            run()
        })
    }

    /// A contestant that measures itself.
    pub(super) fn new(
        name: &str,
        run: impl FnMut() -> Result<Duration, HarnessError> + 'a,
    ) -> Self {
        Self {
            name: name.to_owned(),
            run: Box::new(run),
        }
    }
}

/// The times of one contestant.
#[derive(Clone, Debug)]
pub(super) struct Times {
    /// Its name in the table.
    pub(super) name: String,
    sorted: Vec<Duration>,
}

impl Times {
    /// The time in the middle.
    pub(super) fn median(&self) -> Duration {
        self.sorted
            .get(self.sorted.len() / 2)
            .copied()
            .unwrap_or_default()
    }

    /// The shortest time.
    pub(super) fn shortest(&self) -> Duration {
        self.sorted.first().copied().unwrap_or_default()
    }

    /// How many there are.
    pub(super) fn rounds(&self) -> usize {
        self.sorted.len()
    }

    /// How many times as long as another one this one took, by the medians.
    pub(super) fn ratio(&self, to: &Self) -> f64 {
        self.median().as_secs_f64() / to.median().as_secs_f64()
    }
}

/// Lets all take turns: one round that is not counted, then `rounds` that are.
pub(super) fn take_turns(
    rounds: usize,
    mut contestants: Vec<Contestant<'_>>,
) -> Result<Vec<Times>, HarnessError> {
    let mut times: Vec<Times> = contestants
        .iter()
        .map(|contestant| Times {
            name: contestant.name.clone(),
            sorted: Vec::with_capacity(rounds),
        })
        .collect();
    for round in 0..=rounds {
        for (contestant, times) in contestants.iter_mut().zip(&mut times) {
            let time = (contestant.run)()?;
            if round > 0 {
                times.sorted.push(time);
            }
        }
    }
    for times in &mut times {
        times.sorted.sort();
    }
    Ok(times)
}

/// How long something takes.
pub(super) fn time<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}
