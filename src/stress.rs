//! What stress mode does, and when: the choice. What carries it out is in `pause/stressed.rs`.

use core::fmt;

/// What stress mode does in each of its pauses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum StressWork {
    /// Nothing: the world is stopped and resumed. It shows who holds a lock at a crossing that another thread
    /// waits for while managed, and who does not stop.
    Pause,
    /// The VM's own collection. It shows references that nothing roots.
    Collect,
    /// The VM moves its managed stacks. It shows addresses that do not follow.
    Relocate,
}

impl fmt::Display for StressWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "pause",
            Self::Collect => "collect",
            Self::Relocate => "relocate",
        })
    }
}

/// How a world is stressed: what is done, at how many of the crossings and polls, and from which seed. See [`WorldBuilder::stress`](crate::WorldBuilder::stress).
///
/// # Examples
///
/// ```
/// use reentry::{Stress, StressWork};
///
/// // At every crossing and poll; and at one of seven, which ones being decided by the seed.
/// let always = Stress::new(StressWork::Collect);
/// let sometimes = always.one_in(7).seed(12);
/// // What a test says of itself, so that it can be run again.
/// assert_eq!(sometimes.to_string(), "collect:7:12");
/// assert_eq!(always.to_string(), "collect:1:0");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "it takes effect in `WorldBuilder::stress`"]
pub struct Stress {
    work: StressWork,
    one_in: u64,
    seed: u64,
}

impl Stress {
    /// Does `work` at every crossing and poll.
    pub const fn new(work: StressWork) -> Self {
        Self { work, one_in: 1, seed: 0 }
    }

    /// Does it at one in `points` crossings and polls, on the average. 0 counts as 1.
    pub const fn one_in(mut self, points: u64) -> Self {
        self.one_in = if points == 0 { 1 } else { points };
        self
    }

    /// Decides anew which ones. With the same seed a mutator that takes the same steps is stressed at the same ones.
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// What is done.
    #[must_use]
    pub const fn work(&self) -> StressWork {
        self.work
    }

    /// Says whether the point numbered `point` of the mutator numbered `mutator` is one of those.
    pub(crate) fn is_at(&self, mutator: u64, point: u64) -> bool {
        // splitmix64 of the three.
        let mut z = self.seed ^ mutator.rotate_left(32) ^ point.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).is_multiple_of(self.one_in)
    }

    /// Reads `collect`, `collect:7` or `collect:7:12`, and the same of `pause` and `relocate`.
    ///
    /// # Errors
    ///
    /// What is wrong with the text.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let work = match parts.next() {
            Some("pause") => StressWork::Pause,
            Some("collect") => StressWork::Collect,
            Some("relocate") => StressWork::Relocate,
            _ => return Err(format!("`{text}` does not begin with `pause`, `collect` or `relocate`")),
        };
        let mut number = |otherwise| match parts.next() {
            None => Ok(otherwise),
            Some(part) => {
                part.parse().map_err(|_| format!("`{part}` in `{text}` is no number; write `collect:7:12`"))
            }
        };
        let (one_in, seed) = (number(1)?, number(0)?);
        if parts.next().is_some() {
            return Err(format!("`{text}` has more than three parts; write `collect:7:12`"));
        }
        Ok(Self::new(work).one_in(one_in).seed(seed))
    }
}

impl fmt::Display for Stress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.work, self.one_in, self.seed)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::missing_panics_doc, reason = "a test panics to fail")]

    use super::{Stress, StressWork};

    #[test]
    fn a_stress_is_text_and_back_and_other_text_is_refused() {
        let collect = Stress::new(StressWork::Collect);
        for (text, stress) in [
            ("collect", collect),
            ("collect:7", collect.one_in(7)),
            ("collect:7:12", collect.one_in(7).seed(12)),
            ("pause:1:0", Stress::new(StressWork::Pause)),
            ("relocate:0", Stress::new(StressWork::Relocate)),
        ] {
            assert_eq!(Stress::parse(text), Ok(stress));
            assert_eq!(Stress::parse(&stress.to_string()), Ok(stress));
        }
        for text in ["", "collects", "collect:", "collect:x", "collect:1:2:3", ":1"] {
            assert!(Stress::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn one_in_so_many_points_is_met_and_another_seed_meets_others() {
        let stress = Stress::new(StressWork::Pause).one_in(8);
        let met = |stress: Stress| (0..8000).filter(|&point| stress.is_at(1, point)).collect::<Vec<_>>();
        assert!((900..1100).contains(&met(stress).len()), "{}", met(stress).len());
        assert_eq!(met(stress), met(stress));
        assert_ne!(met(stress), met(stress.seed(1)));
        assert_eq!(met(stress.one_in(1)).len(), 8000);
    }
}
