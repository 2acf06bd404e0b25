//! Series that are replaced as a whole.
//!
//! In: all rows of a metric as they are now. Out: a collector that shows either all of them or all
//! of the rows before: somebody who reads meanwhile sees no counter at zero and misses no series,
//! and what is there no longer is gone at once.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use prometheus::{
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

/// A series: the values of its labels, and its own.
pub(crate) type Row = (Vec<String>, f64);

/// The series of one metric.
#[derive(Debug, Clone)]
pub struct Table {
    desc: Desc,
    kind: MetricType,
    rows: Arc<RwLock<Vec<Row>>>,
}

impl Table {
    /// A metric without series.
    ///
    /// # Errors
    /// When the name or a label is not one.
    pub(super) fn new(
        name: &str,
        help: &str,
        labels: &[&str],
        kind: MetricType,
    ) -> Result<Table, prometheus::Error> {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new())?;
        Ok(Table { desc, kind, rows: Arc::default() })
    }

    /// These are its series from now on, each with a value for each label.
    pub(crate) fn replace(&self, rows: Vec<Row>) {
        *self.rows.write().unwrap_or_else(PoisonError::into_inner) = rows;
    }

    fn metric(&self, (values, value): &Row) -> Metric {
        let labels = self.desc.variable_labels.iter().zip(values).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.clone());
            pair.set_value(value.clone());
            pair
        });
        let mut metric = Metric::default();
        metric.set_label(labels.collect());
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(*value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(*value);
            metric.set_gauge(gauge);
        }
        metric
    }
}

impl Collector for Table {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(self.kind);
        family.set_metric(rows.iter().map(|row| self.metric(row)).collect());
        vec![family]
    }
}
