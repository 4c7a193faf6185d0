//! What does a running node show when it is looked at again?

use std::{thread, time::Duration};

/// How often is looked at what a node changes in a few steps. A thread of the node that was interrupted between two of
/// them needs a processor to get on, perhaps ours.
const TRIES: usize = 64;
/// Tries after which it is waited for, and how long each time: where more threads are ready than there are processors, one
/// that was interrupted gets on after some milliseconds only.
const PATIENT: usize = 16;
const PAUSE: Duration = Duration::from_micros(300);

/// Tries again, and lets others run before.
pub fn again<T, E>(attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    times(TRIES, attempt)
}

/// Tries at most `tries` times.
pub fn times<T, E>(tries: usize, mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    for tried in 1..tries {
        if let Ok(value) = attempt() {
            return Ok(value);
        }
        if tried < PATIENT { thread::yield_now() } else { thread::sleep(PAUSE) }
    }
    attempt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_at_the_first_success_and_else_with_the_last_error() {
        let mut count = 0;
        let mut until = |limit: u32, tries: usize| {
            count = 0;
            times(tries, || {
                count += 1;
                if count == limit { Ok(count) } else { Err(count) }
            })
        };
        assert_eq!(until(3, 5), Ok(3));
        assert_eq!(until(9, 5), Err(5));
        assert_eq!(until(9, 0), Err(1));
    }
}
