//! When were allocations followed, and how much time was that?

use std::ops::Range;

/// The windows of a recording. The first begins with it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Windows {
    state: State,
    /// Seconds of the windows that are over.
    followed: f64,
    is_first: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    /// Since so many seconds after the start of the recording.
    Open(f64),
    /// It is over; which of its blocks are left is not known yet.
    Cut(Range<f64>),
    Blind,
}

impl Default for Windows {
    fn default() -> Self {
        Self { state: State::Open(0.0), followed: 0.0, is_first: true }
    }
}

impl Windows {
    /// Seconds of followed time at `at` seconds; `None` where nothing is followed then.
    pub(super) fn followed(&self, at: f64) -> Option<f64> {
        match self.state {
            State::Open(begin) => Some(self.followed + (at - begin).max(0.0)),
            State::Cut(_) | State::Blind => None,
        }
    }

    /// Whether the first window is still open, and all of the recording.
    pub(super) fn is_only_one(&self) -> bool {
        self.is_first && matches!(self.state, State::Open(_))
    }

    /// The open window ends at `at` seconds. Where none is open, nothing changes.
    pub(super) fn cut(&mut self, at: f64) {
        if let State::Open(begin) = self.state {
            self.state = State::Cut(begin..at.max(begin));
        }
    }

    /// The window that was cut, and the followed time at its end.
    pub(super) fn settle(&mut self) -> Option<(Range<f64>, f64)> {
        let State::Cut(window) = std::mem::replace(&mut self.state, State::Blind) else { return None };
        self.is_first = false;
        self.followed += window.end - window.start;
        Some((window, self.followed))
    }

    /// A window begins at `at` seconds. One that is not settled stays as it is.
    pub(super) fn begin(&mut self, at: f64) {
        if self.state == State::Blind {
            self.state = State::Open(at);
        }
    }
}
