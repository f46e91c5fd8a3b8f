//! Schedules: which stop arrives at which step, and their text.

use super::Step;
use core::fmt;
use core::str::FromStr;

/// When what an [`Arrival`] brings takes place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[non_exhaustive]
pub enum When {
    /// While the explored thread stands at the step; or, if it is managed there, as soon as it is not.
    AtOnce,
    /// The world is stopped while the explored thread stands at the step, and what the stop is for takes place when that thread must wait for it: it comes back while a pause is in force.
    WhenItWaits,
}

/// One action that arrives at one step.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Arrival {
    /// The name of the action.
    pub action: String,
    /// Which step, the first being 1; `None` for every step at which nothing is under way (but the last of a wait, [`Step::WaitRetracted`], where it would be waited for again and again).
    pub at: Option<usize>,
    /// When it takes place.
    pub when: When,
    /// What the step was when the schedule was written down; a replay checks it.
    pub step: Option<Step>,
}

/// What arrives where in one run of a scenario: at most two actions. `name: action@7:call-published, action@12+:call-returning` in text; the plus says [`When::WhenItWaits`], and the name of a step may be
/// left out. `name: action@every` has it arrive at every step.
///
/// # Examples
///
/// ```
/// use reentry::explore::{Schedule, Step, When};
///
/// let schedule: Schedule = "founding: collect@7:call-published, collect@12+".parse()?;
/// assert_eq!(schedule.arrivals[0].step, Some(Step::CallPublished));
/// assert_eq!(schedule.arrivals[1].when, When::WhenItWaits);
/// assert_eq!(schedule.to_string(), "founding: collect@7:call-published, collect@12+");
/// assert!("founding: collect@seven".parse::<Schedule>().is_err());
/// # Ok::<(), reentry::explore::ScheduleError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Schedule {
    /// The name of the scenario.
    pub scenario: String,
    /// What arrives, in the order of the steps.
    pub arrivals: Vec<Arrival>,
}

/// A text that is no schedule.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// There is no colon after the name of the scenario.
    #[error("`{0}` names no scenario; a schedule looks like `name: action@7:call-published, action@12+`")]
    NoScenario(String),
    /// An arrival has no `@`, or no number after it.
    #[error(
        "`{0}` is no arrival; one looks like `action@7`, `action@7+`, `action@7:call-published` or `action@every`"
    )]
    NoArrival(String),
    /// There is no such step.
    #[error("`{0}` is no step of a crossing; see `Step::ALL`")]
    NoStep(String),
    /// There are more than can arrive.
    #[error("{0} actions cannot arrive in one run; at most two can")]
    TooMany(usize),
}

impl fmt::Display for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(at) => write!(f, "{}@{at}", self.action)?,
            None => write!(f, "{}@every", self.action)?,
        }
        if self.when == When::WhenItWaits {
            f.write_str("+")?;
        }
        match self.step {
            Some(step) => write!(f, ":{step}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scenario)?;
        for (index, arrival) in self.arrivals.iter().enumerate() {
            write!(f, "{} {arrival}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Arrival {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let wrong = || ScheduleError::NoArrival(text.to_owned());
        let (action, place) = text.trim().split_once('@').ok_or_else(wrong)?;
        let (number, step) = match place.split_once(':') {
            Some((number, name)) => {
                let step = Step::ALL.iter().copied().find(|step| step.name() == name.trim());
                (number, Some(step.ok_or_else(|| ScheduleError::NoStep(name.to_owned()))?))
            }
            None => (place, None),
        };
        let (number, when) = match number.trim().strip_suffix('+') {
            Some(number) => (number, When::WhenItWaits),
            None => (number.trim(), When::AtOnce),
        };
        let at = match number {
            "every" => None,
            number => Some(number.parse().ok().filter(|&at| at > 0).ok_or_else(wrong)?),
        };
        Ok(Self { action: action.to_owned(), at, when, step })
    }
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let (scenario, rest) =
            text.split_once(':').ok_or_else(|| ScheduleError::NoScenario(text.to_owned()))?;
        let rest = rest.trim();
        let mut arrivals = Vec::new();
        if !rest.is_empty() {
            for arrival in rest.split(',') {
                arrivals.push(arrival.parse::<Arrival>()?);
            }
        }
        if arrivals.len() > super::AT_MOST {
            return Err(ScheduleError::TooMany(arrivals.len()));
        }
        arrivals.sort_by_key(|arrival| arrival.at);
        Ok(Self { scenario: scenario.trim().to_owned(), arrivals })
    }
}
