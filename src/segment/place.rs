//! Where a segment's body is written: into the tar itself, if its place there is known in time.
//!
//! A body that is written to the tar is written once. Its place is known when all layers before it are: a body that is
//! under way then is moved there and goes on there; one that is finished already stays in the segment's own file.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::compression::window;

/// A place in a tar for one body.
#[derive(Debug, Clone)]
pub struct Place {
    /// The tar.
    pub tar: Arc<File>,
    /// The tar's number in the cache: not 0.
    pub number: u64,
    /// Where the header of the layer's root directory begins, which stands before the body.
    pub offset: u64,
    /// The time of header blocks that no layer dates.
    pub stamp: i64,
}

/// A place that may be given while the body is being written.
#[derive(Debug, Clone)]
pub struct Slot(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    place: Mutex<Fate>,
    changed: Condvar,
    ahead: u64,
}

#[derive(Debug)]
enum Fate {
    /// It is not known yet.
    Open,
    /// This one.
    Given(Place),
    /// There will be none.
    Never,
}

impl Slot {
    /// A place that may still come. A writer that has none yet may go ahead by `ahead` bytes, which will have to be moved, and
    /// waits then.
    #[must_use]
    pub fn new(ahead: u64) -> Self {
        Self(Arc::new(Shared { place: Mutex::new(Fate::Open), changed: Condvar::new(), ahead }))
    }

    /// A place that will never come.
    #[must_use]
    pub fn none() -> Self {
        let slot = Self::new(u64::MAX);
        slot.refuse();
        slot
    }

    /// Gives the place. The first one counts: a second attempt at the same tar gives the same one.
    pub fn give(&self, place: Place) {
        self.decide(Fate::Given(place));
    }

    /// There will be no place.
    pub fn refuse(&self) {
        self.decide(Fate::Never);
    }

    fn decide(&self, fate: Fate) {
        let mut place = self.0.place.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*place, Fate::Open) {
            *place = fate;
            self.0.changed.notify_all();
        }
    }

    /// Returns the place, if it has been given. Waits for the decision when `written` bytes are as many as may go ahead, but not
    /// while a decoder needs memory: this layer may hold it, and its place may depend on that decoder's layer.
    #[must_use]
    pub fn place(&self, written: u64) -> Option<Place> {
        let place = self.0.place.lock().unwrap_or_else(PoisonError::into_inner);
        let is_open = |fate: &Fate| written >= self.0.ahead && matches!(fate, Fate::Open);
        match &*wait_while_uncontended(&self.0.changed, place, is_open) {
            Fate::Given(place) => Some(place.clone()),
            Fate::Open | Fate::Never => None,
        }
    }
}

/// Interval at which a waiting layer looks for decoders that need memory.
const LOOK: Duration = Duration::from_millis(50);

/// Waits while `is_waiting` is true and no decoder waits for the memory of another one ([`window`]).
fn wait_while_uncontended<'a, T>(
    changed: &Condvar,
    mut guard: MutexGuard<'a, T>,
    is_waiting: impl Fn(&T) -> bool,
) -> MutexGuard<'a, T> {
    while is_waiting(&guard) && !window::is_contended() {
        guard = changed.wait_timeout(guard, LOOK).unwrap_or_else(PoisonError::into_inner).0;
    }
    guard
}

/// How many layers may be converted at once, and in which order they begin.
///
/// Threads that work on one layer leave a second one little to do: it would be finished before its place is known, and
/// be copied. So as many as the processors can bear have a turn; the next one reads ahead meanwhile.
#[derive(Debug)]
pub struct Turns {
    is_limited: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    free: usize,
    issued: u64,
    /// Tickets that are waiting, or will: the lowest goes first.
    tickets: BTreeSet<u64>,
}

/// A place in the queue for a turn; dropped, it makes way.
#[derive(Debug)]
pub struct Ticket<'a> {
    turns: &'a Turns,
    number: u64,
}

/// Held while a layer is converted.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a Turns,
    /// True for a turn beyond the number of those that there are.
    is_extra: bool,
}

impl Turns {
    /// As many at once as like to, in any order: for layers that come from servers, of which one may keep us waiting.
    #[must_use]
    pub fn unlimited() -> Self {
        Self { is_limited: false, ..Self::new(usize::MAX) }
    }

    /// `count` at once.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self {
            is_limited: true,
            state: Mutex::new(State { free: count, issued: 0, tickets: BTreeSet::new() }),
            changed: Condvar::new(),
        }
    }

    /// Whoever asks first goes first.
    #[must_use]
    pub fn ticket(&self) -> Ticket<'_> {
        let mut state = self.state();
        let number = state.issued;
        state.issued += 1;
        state.tickets.insert(number);
        Ticket { turns: self, number }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nobody can panic with it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Ticket<'a> {
    /// Waits for the turn, but not while a decoder needs memory that this layer may hold: then more layers are converted at once.
    #[must_use]
    pub fn take(self) -> Turn<'a> {
        let turns = self.turns;
        let is_mine =
            |state: &State| !turns.is_limited || state.free > 0 && state.tickets.first() == Some(&self.number);
        let mut state = wait_while_uncontended(&turns.changed, turns.state(), |state| !is_mine(state));
        let is_extra = state.free == 0;
        if !is_extra {
            state.free -= 1;
        }
        Turn { turns, is_extra }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.turns.state().tickets.remove(&self.number);
        self.turns.changed.notify_all();
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.state().free += usize::from(!self.is_extra);
        self.turns.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn turns_are_taken_in_the_order_of_the_tickets() {
        let turns = Turns::new(1);
        let (first, second, third) = (turns.ticket(), turns.ticket(), turns.ticket());
        let (sender, taken) = channel();
        std::thread::scope(|scope| {
            let third = scope.spawn({
                let sender = sender.clone();
                move || {
                    let _turn = third.take();
                    sender.send(3).unwrap();
                }
            });
            drop(first);
            let turn = second.take();
            sender.send(2).unwrap();
            assert!(!third.is_finished());
            drop(turn);
        });
        assert_eq!(taken.try_iter().collect::<Vec<_>>(), [2, 3]);
        drop(turns.ticket().take());
        let turns = Turns::unlimited();
        let (_first, second) = (turns.ticket(), turns.ticket());
        drop(second.take());
    }
}
