//! When there are enough replicates: the two-sided t interval of the mean of a metric
//! (`analysis::summary::mean_ci`; NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.5.2) is
//! narrow enough, as a share of the mean. Looked at after every replicate from the least number on,
//! in their order, whatever order they ended in. Stopping by the width of an interval makes that
//! interval a little too narrow for few replicates (Chow and Robbins 1965 show it right in the
//! limit), which is why there is a least number.

use crate::analysis::summary::mean_ci;
use crate::plan::model::StopRule;

/// Why no further replicate is needed after these values; `None` while one is.
pub(super) fn enough(rule: &StopRule, values: &[f64]) -> Option<String> {
    if values.len() < rule.min as usize {
        return None;
    }
    let (low, high) = mean_ci(values, rule.confidence).ok()?;
    let (half, mean) = ((high - low) / 2.0, f64::midpoint(low, high));
    // Of a mean of nothing no share can be taken, unless there is no spread either.
    let share = if half == 0.0 { 0.0 } else { half / mean.abs() };
    (share <= rule.relative_half_width).then(|| {
        format!(
            "{} is {} within {:.2} % at {} % confidence after {} replicates",
            rule.metric,
            significant(mean),
            share * 100.0,
            rule.confidence * 100.0,
            values.len()
        )
    })
}

/// Four significant digits.
fn significant(value: f64) -> String {
    let magnitude = if value == 0.0 {
        0.0
    } else {
        value.abs().log10().floor()
    };
    let digits = (3.0 - magnitude).clamp(0.0, 9.0) as usize;
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(relative_half_width: f64) -> StopRule {
        StopRule {
            metric: "m".into(),
            relative_half_width,
            confidence: 0.95,
            min: 3,
            max: 9,
        }
    }

    #[test]
    fn the_interval_is_the_t_interval_and_the_least_number_is_kept() {
        // Mean 10, standard deviation 1, t(0.975, 2) = 4.302653: half width 2.484138.
        let values = [9.0, 10.0, 11.0];
        assert_eq!(enough(&rule(0.2484), &values), None);
        let why = enough(&rule(0.2485), &values).unwrap();
        assert_eq!(
            why,
            "m is 10.00 within 24.84 % at 95 % confidence after 3 replicates"
        );
        assert_eq!(enough(&rule(0.9), &values[..2]), None);
        assert!(enough(&rule(0.01), &[5.0; 3]).is_some(), "no spread at all");
        assert!(enough(&rule(0.01), &[0.0; 3]).is_some());
        assert_eq!(
            enough(&rule(0.5), &[-1.0, 0.0, 1.0]),
            None,
            "a share of nothing"
        );
        assert!(enough(&rule(0.2485), &values.map(|x| -x)).is_some());
    }
}
