//! Conditions on changes, for a build that is to fail: `j_per_request>+5%`.

use std::fmt;
use std::str::FromStr;

use super::model::{
    ConditionOutcome, ConditionResult, Figure, FigureChange, SeenIn, ServiceComparison, Verdict,
};

/// A condition on the change of one figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    text: String,
    figure: Figure,
    is_above: bool,
    /// A ratio: 0.05 is 5 %.
    limit: f64,
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "a condition is a figure, > or <, and a change in per cent, as in \
            'j_per_request>+5%'";
        let place = text.find(['<', '>']).ok_or(FORM)?;
        let (name, rest) = text.split_at(place);
        let name = name.trim();
        let figure = Figure::ALL
            .into_iter()
            .find(|figure| figure.name() == name)
            .ok_or_else(|| {
                let known = Figure::ALL.map(Figure::name).join(", ");
                format!("`{name}` is no figure of a comparison; these are: {known}")
            })?;
        let is_above = rest.starts_with('>');
        let number = rest.get(1..).and_then(|rest| rest.trim().strip_suffix('%'));
        let percent = number.and_then(|number| number.trim().parse::<f64>().ok());
        let percent = percent.filter(|percent| percent.is_finite()).ok_or(FORM)?;
        Ok(Self {
            text: text.to_owned(),
            figure,
            is_above,
            limit: percent / 100.0,
        })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Condition {
    fn outcome(&self, change: &FigureChange, regardless: bool) -> ConditionOutcome {
        let Some(by) = change.change else {
            return ConditionOutcome::Undecided;
        };
        let is_beyond = match self.is_above {
            true => by > self.limit,
            false => by < self.limit,
        };
        let is_known = match change.verdict {
            Verdict::Higher | Verdict::Lower => true,
            Verdict::NotShown => regardless,
            Verdict::NotEnoughData if !regardless => return ConditionOutcome::Undecided,
            Verdict::NotEnoughData | Verdict::NotSupported => regardless,
        };
        match is_beyond && is_known {
            true => ConditionOutcome::Met,
            false => ConditionOutcome::NotMet,
        }
    }
}

/// Looks at each condition, for each service that is in both runs.
pub(super) fn check(
    services: &[ServiceComparison],
    conditions: &[Condition],
    regardless: bool,
) -> Vec<ConditionResult> {
    let mut results = Vec::new();
    for condition in conditions {
        for service in services.iter().filter(|one| one.seen_in == SeenIn::Both) {
            let mut figures = service.figures.iter();
            let change = figures.find(|change| change.figure == condition.figure);
            let outcome = change.map_or(ConditionOutcome::Undecided, |change| {
                condition.outcome(change, regardless)
            });
            results.push(ConditionResult {
                condition: condition.text.clone(),
                service: service.service.clone(),
                outcome,
            });
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::super::model::Pair;
    use super::*;

    fn condition(text: &str) -> Condition {
        text.parse().unwrap()
    }

    fn change(by: f64, verdict: Verdict) -> FigureChange {
        FigureChange {
            figure: Figure::JPerRequest,
            values: Pair {
                a: Some(1.0),
                b: Some(1.0 + by),
            },
            change: Some(by),
            low: None,
            high: None,
            p: None,
            verdict,
        }
    }

    #[test]
    fn a_condition_is_read_with_or_without_a_sign_and_spaces() {
        let wanted = condition("j_per_request>+5%");
        assert_eq!((wanted.is_above, wanted.limit), (true, 0.05));
        let wanted = condition(" requests_per_s < -2.5 %");
        assert_eq!(wanted.figure, Figure::RequestsPerS);
        assert_eq!((wanted.is_above, wanted.limit), (false, -0.025));
    }

    #[test]
    fn what_is_no_condition_is_refused_with_the_form_or_the_names() {
        for text in [
            "",
            "j_per_request",
            "j_per_request>5",
            "j_per_request>x%",
            "ttft_s>inf%",
        ] {
            let error = text.parse::<Condition>().unwrap_err();
            assert!(error.contains("'j_per_request>+5%'"), "{text}: {error}");
        }
        let error = "joules>5%".parse::<Condition>().unwrap_err();
        assert!(
            error.contains("`joules`") && error.contains("j_per_output_token"),
            "{error}"
        );
    }

    #[test]
    fn it_is_met_beyond_the_limit_and_beyond_chance() {
        use ConditionOutcome::{Met, NotMet, Undecided};
        let above = condition("j_per_request>+5%");
        for (by, verdict, strictly, regardless) in [
            (0.20, Verdict::Higher, Met, Met),
            (0.20, Verdict::NotShown, NotMet, Met),
            (0.20, Verdict::NotEnoughData, Undecided, Met),
            (0.04, Verdict::Higher, NotMet, NotMet),
            (0.04, Verdict::NotEnoughData, Undecided, NotMet),
            (-0.20, Verdict::Lower, NotMet, NotMet),
        ] {
            let change = change(by, verdict);
            assert_eq!(above.outcome(&change, false), strictly, "{change:?}");
            assert_eq!(above.outcome(&change, true), regardless, "{change:?}");
        }
        let below = condition("j_per_request<-5%");
        assert_eq!(below.outcome(&change(-0.2, Verdict::Lower), false), Met);
        assert_eq!(below.outcome(&change(0.2, Verdict::Higher), false), NotMet);
        let unknown = FigureChange {
            change: None,
            ..change(0.0, Verdict::NotSupported)
        };
        assert_eq!(below.outcome(&unknown, true), Undecided);
    }
}
