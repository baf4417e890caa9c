//! The boards that are metered: those of the start and those that came later, for all threads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Board;
use crate::ledger::MeterId;

/// A list that only grows. A board that is lost stays: it may come back.
#[derive(Debug, Clone, Default)]
pub(in crate::meters) struct Roster(Arc<Mutex<Vec<(Board, MeterId)>>>);

impl Roster {
    pub(super) fn new(boards: Vec<(Board, MeterId)>) -> Self {
        Self(Arc::new(Mutex::new(boards)))
    }

    /// From now on this board is metered too.
    pub(in crate::meters) fn add(&self, board: Board, meter: MeterId) {
        self.boards().push((board, meter));
    }

    /// Boards from place `known` on.
    pub(super) fn from(&self, known: usize) -> Vec<(Board, MeterId)> {
        self.boards().get(known..).unwrap_or_default().to_vec()
    }

    fn boards(&self) -> MutexGuard<'_, Vec<(Board, MeterId)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
