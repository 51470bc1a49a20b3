//! What is told of repeated measurements: median and spread, and the interval of a ratio.

/// Measurements of one thing, in the order of their size.
#[derive(Clone, Debug)]
pub struct Sample {
    sorted: Vec<f64>,
}

impl Sample {
    /// `values` must not be empty.
    pub fn new(mut values: Vec<f64>) -> Self {
        assert!(!values.is_empty(), "nothing was measured");
        values.sort_by(f64::total_cmp);
        Self { sorted: values }
    }

    pub fn least(&self) -> f64 {
        self.sorted[0]
    }

    pub fn greatest(&self) -> f64 {
        self.sorted[self.sorted.len() - 1]
    }

    /// The least measurement that so large a part (0 to 1) of all does not exceed.
    pub fn quantile(&self, part: f64) -> f64 {
        let rank = (part * self.sorted.len() as f64).ceil() as usize;
        self.sorted[rank.clamp(1, self.sorted.len()) - 1]
    }

    pub fn median(&self) -> f64 {
        let middle = self.sorted.len() / 2;
        if self.sorted.len() % 2 == 1 {
            self.sorted[middle]
        } else {
            self.sorted[middle - 1].midpoint(self.sorted[middle])
        }
    }
}

/// What is estimated from pairs, with its 95 % interval.
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// The geometric mean of ratios of pairs, by Student's t on their logarithms.
pub fn ratio(pairs: &[(f64, f64)]) -> Estimate {
    let Estimate { value, low, high } =
        mean(&pairs.iter().map(|(with, without)| (with / without).ln()).collect::<Vec<_>>());
    Estimate { value: value.exp(), low: low.exp(), high: high.exp() }
}

/// The mean of how much the first of each pair is greater than the second, by Student's t.
pub fn difference(pairs: &[(f64, f64)]) -> Estimate {
    mean(&pairs.iter().map(|(greater, less)| greater - less).collect::<Vec<_>>())
}

fn mean(values: &[f64]) -> Estimate {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    let half = student(values.len().saturating_sub(1)) * (variance / count).sqrt();
    Estimate { value: mean, low: mean - half, high: mean + half }
}

/// The 97.5 % quantile of Student's distribution, by its expansion around the normal quantile (Abramowitz and Stegun 26.7.5); within
/// 1 % of the truth from 4 degrees of freedom on.
fn student(freedom: usize) -> f64 {
    const NORMAL: f64 = 1.959_964;
    let z = NORMAL;
    let n = freedom.max(1) as f64;
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    z + first / n + second / n.powi(2) + third / n.powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn student_as_in_the_tables() {
        for (freedom, expected) in [(4, 2.776), (9, 2.262), (11, 2.201), (19, 2.093), (120, 1.980)] {
            let found = student(freedom);
            assert!((found / expected - 1.0).abs() < 0.01, "{freedom} degrees of freedom: {found}, not {expected}");
        }
    }

    #[test]
    fn a_ratio_has_its_interval_around_it() {
        let ratio = ratio(&[(95.0, 100.0), (97.0, 100.0), (93.0, 100.0), (95.0, 100.0)]);
        assert!((ratio.value - 0.95).abs() < 0.001, "{ratio:?}");
        // Standard error of the logarithms 0.0086, times t(3) = 3.18.
        assert!((ratio.low - 0.9243).abs() < 0.003 && (ratio.high - 0.9763).abs() < 0.003, "{ratio:?}");
    }

    #[test]
    fn a_difference_has_its_interval_around_it() {
        let difference = difference(&[(11.0, 1.0), (13.0, 1.0), (9.0, 1.0), (11.0, 1.0)]);
        // Standard error 0.816, times t(3) = 3.18.
        assert!((difference.value - 10.0).abs() < 1e-9, "{difference:?}");
        assert!((difference.high - 12.6).abs() < 0.1 && (difference.low - 7.4).abs() < 0.1, "{difference:?}");
    }

    #[test]
    fn a_quantile_is_a_measurement() {
        let sample = Sample::new((1..=200).map(f64::from).collect());
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|part| sample.quantile(part)), [1.0, 100.0, 198.0, 200.0]);
    }

    #[test]
    fn the_median_lies_in_the_middle() {
        for (values, expected) in [(vec![3.0, 1.0, 2.0], 2.0), (vec![4.0, 1.0, 2.0, 3.0], 2.5)] {
            let sample = Sample::new(values);
            assert_eq!((sample.least(), sample.median()), (1.0, expected));
        }
    }
}
