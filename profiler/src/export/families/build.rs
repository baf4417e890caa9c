//! Families under construction: labels and values to the `prometheus` crate's types, or only the
//! number of series that they would have.

use std::collections::BTreeMap;

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as ProtoHistogram, LabelPair, Metric, MetricFamily,
    MetricType,
};

use super::super::catalog::{Family, Kind, POD_LABELS};
use super::super::exemplars::Sampled;
use super::super::histogram::Histogram;

/// Beside its bounds' buckets: the infinite one, sum and count.
const BESIDE_BUCKETS: usize = 3;

/// Families that series are added to.
pub(in super::super) struct Families {
    /// By name; `None` where series are only counted.
    built: Option<BTreeMap<&'static str, MetricFamily>>,
    exemplars: Exemplars,
    series: usize,
}

/// By a family's name and the place of one of its metrics.
type Exemplars = BTreeMap<&'static str, BTreeMap<usize, Vec<ShownExemplar>>>;

/// All that a scrape shows.
pub(in super::super) struct Shown {
    /// Sorted by name.
    pub(in super::super) families: Vec<MetricFamily>,
    exemplars: Exemplars,
    pub(in super::super) series: usize,
}

/// One request in a bucket.
pub(in super::super) struct ShownExemplar {
    /// The bucket's place; that of the infinite one is behind all bounds'.
    pub(in super::super) bucket: usize,
    pub(in super::super) request: u64,
    /// In the family's unit.
    pub(in super::super) value: f64,
    pub(in super::super) unix_millis: u64,
}

impl Shown {
    /// Of one metric of a family, in no order.
    pub(in super::super) fn exemplars(&self, family: &str, place: usize) -> &[ShownExemplar] {
        let of = self.exemplars.get(family);
        of.and_then(|of| of.get(&place)).map_or(&[], Vec::as_slice)
    }
}

impl Families {
    pub(in super::super) fn build() -> Self {
        Self {
            built: Some(BTreeMap::new()),
            ..Self::count()
        }
    }

    pub(in super::super) const fn count() -> Self {
        Self {
            built: None,
            exemplars: BTreeMap::new(),
            series: 0,
        }
    }

    pub(in super::super) fn finish(self) -> Shown {
        Shown {
            families: self.built.unwrap_or_default().into_values().collect(),
            exemplars: self.exemplars,
            series: self.series,
        }
    }

    pub(super) fn known(&mut self, family: &Family, labels: &[&str], value: Option<f64>) {
        if let Some(value) = value {
            self.number(family, labels, value);
        }
    }

    pub(in super::super) fn number(&mut self, family: &Family, labels: &[&str], value: f64) {
        self.series += 1;
        let Some(metrics) = self.metrics(family) else {
            return;
        };
        let mut metric = Metric::from_label(pairs(family, labels));
        if family.kind == Kind::Counter {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metrics.push(metric);
    }

    /// `unit`: how many of the bounds' unit make one of the family's.
    pub(in super::super) fn histogram<const N: usize>(
        &mut self,
        family: &Family,
        labels: &[&str],
        bounds: &[u64; N],
        histogram: &Histogram<N>,
        unit: f64,
    ) {
        self.series += N + BESIDE_BUCKETS;
        let Some(metrics) = self.metrics(family) else {
            return;
        };
        let buckets = bounds
            .iter()
            .zip(histogram.cumulative())
            .map(|(&bound, count)| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(bound as f64 / unit);
                bucket.set_cumulative_count(count);
                bucket
            })
            .collect();
        let mut value = ProtoHistogram::default();
        value.set_bucket(buckets);
        value.set_sample_count(histogram.count);
        value.set_sample_sum(histogram.sum as f64 / unit);
        let mut metric = Metric::from_label(pairs(family, labels));
        metric.set_histogram(value);
        metrics.push(metric);
    }

    /// The same, with the latest request in each bucket.
    pub(in super::super) fn sampled<const N: usize>(
        &mut self,
        family: &Family,
        labels: &[&str],
        bounds: &[u64; N],
        sampled: &Sampled<N>,
        unit: f64,
    ) {
        let place = self.metrics(family).map(|metrics| metrics.len());
        self.histogram(family, labels, bounds, &sampled.histogram, unit);
        if let Some(place) = place {
            let shown = sampled.exemplars().iter().map(|exemplar| ShownExemplar {
                bucket: exemplar.bucket,
                request: exemplar.moment.request.0,
                value: exemplar.value as f64 / unit,
                unix_millis: exemplar.moment.unix_millis,
            });
            let of_family = self.exemplars.entry(family.name).or_default();
            of_family.insert(place, shown.collect());
        }
    }

    /// The metrics of a family; `None` where series are only counted.
    fn metrics(&mut self, family: &Family) -> Option<&mut Vec<Metric>> {
        let families = self.built.as_mut()?;
        let family = families.entry(family.name).or_insert_with(|| {
            let mut empty = MetricFamily::default();
            empty.set_name(family.name.to_owned());
            empty.set_help(family.help.to_owned());
            empty.set_field_type(match family.kind {
                Kind::Counter => MetricType::COUNTER,
                Kind::Gauge => MetricType::GAUGE,
                Kind::Histogram => MetricType::HISTOGRAM,
            });
            empty
        });
        Some(family.mut_metric())
    }
}

fn pairs(family: &Family, values: &[&str]) -> Vec<LabelPair> {
    debug_assert_eq!(family.labels.len(), values.len(), "{}", family.name);
    family
        .labels
        .iter()
        .zip(values)
        .filter(|(name, value)| !(value.is_empty() && POD_LABELS.contains(*name)))
        .map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        })
        .collect()
}
