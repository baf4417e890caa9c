//! Figures of runs without the agent and with it, taken in turns: off, on, on, off.

/// The figures, in the order they were taken.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    pub(crate) off: Vec<f64>,
    pub(crate) on: Vec<f64>,
}

impl Pairs {
    pub(crate) fn add(&mut self, on: bool, figure: f64) {
        if on {
            self.on.push(figure);
        } else {
            self.off.push(figure);
        }
    }

    /// Of each pair of neighbours: how much less it is with the agent, in percent; below 0 where it is more.
    pub(crate) fn lost_percent(&self) -> Vec<f64> {
        self.off
            .iter()
            .zip(&self.on)
            .map(|(off, on)| (1.0 - on / off) * 100.0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_with_the_agent_is_held_against_its_neighbour_without() {
        let mut pairs = Pairs::default();
        // Off, on, on, off, while the machine gets slower.
        for (on, figure) in [(false, 100.0), (true, 90.0), (true, 45.0), (false, 50.0)] {
            pairs.add(on, figure);
        }
        let lost = pairs.lost_percent();
        assert!(
            lost.iter().all(|lost| (lost - 10.0).abs() < 1e-9),
            "{lost:?}"
        );
    }
}
