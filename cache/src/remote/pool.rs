//! Many requests at a time, but never more than [`WIDTH`], and none begun after the deadline.
//! Every item gets exactly one answer, in the order of the items.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Requests under way at most.
pub(super) const WIDTH: usize = 16;

/// Does `work` for all items; `None` for those that were not begun in time.
pub(super) fn each<T: Sync, R: Send>(
    items: &[T],
    deadline: Option<Instant>,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<Option<R>> {
    let next = AtomicUsize::new(0);
    let answers: Vec<Mutex<Option<R>>> = items.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..WIDTH.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { return };
                    if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                        return;
                    }
                    let answer = work(item);
                    if let Ok(mut slot) = answers[at].lock() {
                        *slot = Some(answer);
                    }
                }
            });
        }
    });
    answers
        .into_iter()
        .map(|slot| slot.into_inner().unwrap_or(None))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_once_in_order_and_no_more_than_the_width_at_a_time() {
        let items: Vec<usize> = (0..200).collect();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let answers = each(&items, None, |item| {
            let running = now.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(running, Ordering::SeqCst);
            std::thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
            item * 2
        });
        let expected: Vec<_> = items.iter().map(|item| Some(item * 2)).collect();
        assert_eq!(answers, expected);
        assert!(most.load(Ordering::SeqCst) <= WIDTH);
        assert!(each(&[0_u8; 0], None, |_| ()).is_empty());
    }

    #[test]
    fn after_the_deadline_nothing_is_begun() {
        let answers = each(&[1, 2, 3], Some(Instant::now()), |item| *item);
        assert_eq!(answers, [None, None, None]);
    }
}
