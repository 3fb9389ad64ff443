//! The cells of a matrix: every combination of one level per factor, in file order, the last
//! factor fastest. A matrix without factors has one cell.

/// Walks over the cells as lists of level numbers.
#[derive(Debug, Clone)]
pub(super) struct Cells {
    sizes: Vec<usize>,
    at: Vec<usize>,
    done: bool,
    started: bool,
}

impl Cells {
    /// `sizes` are the numbers of levels.
    pub(super) fn new(sizes: Vec<usize>) -> Self {
        Self {
            at: vec![0; sizes.len()],
            done: sizes.contains(&0),
            started: false,
            sizes,
        }
    }

    /// How many there are; `None` when the number does not fit.
    pub(super) fn count(sizes: &[usize]) -> Option<usize> {
        sizes
            .iter()
            .try_fold(1usize, |product, size| product.checked_mul(*size))
    }

    /// The next cell.
    pub(super) fn advance(&mut self) -> Option<&[usize]> {
        if self.done {
            return None;
        }
        if self.started {
            let moved = self.at.iter_mut().zip(&self.sizes).rev().any(|(at, size)| {
                *at += 1;
                let carried = *at == *size;
                if carried {
                    *at = 0;
                }
                !carried
            });
            if !moved {
                self.done = true;
                return None;
            }
        }
        self.started = true;
        Some(&self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn oracle(sizes: &[usize]) -> Vec<Vec<usize>> {
        match sizes.split_first() {
            None => vec![vec![]],
            Some((first, rest)) => (0..*first)
                .flat_map(|at| {
                    oracle(rest).into_iter().map(move |mut tail| {
                        tail.insert(0, at);
                        tail
                    })
                })
                .collect(),
        }
    }

    proptest! {
        #[test]
        fn as_nested_loops(sizes in proptest::collection::vec(0usize..4, 0..5)) {
            let mut cells = Cells::new(sizes.clone());
            let mut found = Vec::new();
            while let Some(cell) = cells.advance() {
                found.push(cell.to_vec());
            }
            prop_assert!(cells.advance().is_none());
            prop_assert_eq!(found.len(), Cells::count(&sizes).unwrap());
            prop_assert_eq!(found, oracle(&sizes));
        }
    }

    #[test]
    fn a_count_that_does_not_fit_is_none() {
        assert_eq!(Cells::count(&[usize::MAX, 2]), None);
        assert_eq!(Cells::count(&[]), Some(1));
    }
}
