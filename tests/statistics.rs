//! Every statistic against reference values: certified by NIST, published, or computed with R,
//! SciPy, scikit-learn, mclust, ruptures and mpmath. The file says for each where it comes from
//! and how near an answer has to be: |got - want| <= abs + rel |want|.

use std::collections::BTreeSet;

use doe::analysis::bootstrap::{Resampling, bootstrap};
use doe::analysis::changepoint::{pelt, penalty};
use doe::analysis::dip::{DipNull, dip};
use doe::analysis::mixture::{Fit, Variance, choose, fit_one, fit_two};
use doe::analysis::moments::shape;
use doe::analysis::padjust::benjamini_hochberg;
use doe::analysis::quantile::{Method, quantile, quantile_ranks};
use doe::analysis::sample::mean;
use doe::analysis::summary::{Summary, normal_cdf, normal_quantile, stdev, t_quantile};
use doe::analysis::warmup::mser;
use serde_json::Value;

struct Vector {
    id: String,
    input: Value,
    expected: Value,
    rel: f64,
    abs: f64,
}

impl Vector {
    fn near(&self, what: &str, got: f64, want: f64) {
        self.within(what, got, want, self.rel, self.abs);
    }

    fn within(&self, what: &str, got: f64, want: f64, rel: f64, abs: f64) {
        let bound = abs + rel * want.abs();
        assert!(
            (got - want).abs() <= bound,
            "{} {what}: got {got}, want {want} within {bound:e}",
            self.id
        );
    }

    fn all_near(&self, what: &str, got: &[f64], want: &Value) {
        let want = numbers(want);
        assert_eq!(got.len(), want.len(), "{} {what}", self.id);
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            self.near(&format!("{what}[{i}]"), *g, *w);
        }
    }

    fn x(&self) -> Vec<f64> {
        numbers(&self.input["x"])
    }

    fn want(&self, name: &str) -> f64 {
        number(&self.expected[name])
    }
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("not a number: {value}"))
}

/// Numbers of a list; a lone number is a list of one.
fn numbers(value: &Value) -> Vec<f64> {
    match value.as_array() {
        Some(list) => list.iter().map(number).collect(),
        None => vec![number(value)],
    }
}

/// The vectors whose id starts with `prefix`; asking for none is a mistake of the test.
fn vectors(prefix: &str) -> Vec<Vector> {
    let text = include_str!("data/stat-vectors.json");
    let all: Value = serde_json::from_str(text).unwrap();
    let found: Vec<Vector> = all["vectors"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|v| v["id"].as_str().unwrap().starts_with(prefix))
        .map(|v| Vector {
            id: v["id"].as_str().unwrap().to_owned(),
            input: v["input"].clone(),
            expected: v["expected"].clone(),
            rel: number(&v["tol"]["rel"]),
            abs: number(&v["tol"]["abs"]),
        })
        .collect();
    assert!(!found.is_empty(), "no vector {prefix}*");
    found
}

/// Families that some test below reads: a vector that nobody reads proves nothing.
const READ: [&str; 14] = [
    "bca.",
    "bimodality_coefficient.",
    "dip.",
    "dist.normal",
    "dist.t.",
    "gmm.",
    "gmm_converged.",
    "mser5.",
    "nist.uni.",
    "padjust.",
    "pelt.",
    "percentile.tools",
    "quantile.",
    "quantile_ci.",
];

#[test]
fn no_vector_lies_unread() {
    let unread: BTreeSet<String> = vectors("")
        .into_iter()
        .map(|v| v.id)
        .filter(|id| !READ.iter().any(|prefix| id.starts_with(prefix)))
        .collect();
    assert!(unread.is_empty(), "{unread:?}");
}

#[test]
fn univariate_against_nist() {
    for v in vectors("nist.uni.") {
        let summary = Summary::of(&v.x()).unwrap();
        v.near("mean", summary.mean, v.want("mean"));
        v.near("sd", summary.stdev.unwrap(), v.want("sd"));
    }
}

#[test]
fn quantiles_of_all_nine_types() {
    for v in vectors("quantile.") {
        let (x, p) = (v.x(), numbers(&v.input["p"]));
        for (i, method) in Method::ALL.into_iter().enumerate() {
            let name = format!("type{}", i + 1);
            let got: Vec<f64> = p
                .iter()
                .map(|p| quantile(&x, *p, method).unwrap())
                .collect();
            v.all_near(&name, &got, &v.expected[&name]);
        }
    }
}

#[test]
fn percentiles_as_the_serving_tools_print_them() {
    for v in vectors("percentile.tools") {
        let x = v.x();
        let at = |p, method| quantile(&x, p, method).unwrap();
        let summary = Summary::of(&x).unwrap();
        v.near("sd", stdev(&x).unwrap().unwrap(), v.want("sample_std"));
        for tool in ["vllm", "aiperf"] {
            let want = &v.expected[tool];
            v.near("p90", summary.p90, number(&want["p90"]));
            v.near("p99", summary.p99, number(&want["p99"]));
        }
        v.near("p50", summary.p50, number(&v.expected["vllm"]["median"]));
        let guide = &v.expected["guidellm"];
        v.near("p90", at(0.9, Method::Type1), number(&guide["p90"]));
        v.near("p99", at(0.99, Method::Type1), number(&guide["p99"]));
    }
}

#[test]
fn order_statistic_intervals() {
    for v in vectors("quantile_ci.") {
        let n = v.input["n"].as_u64().unwrap() as usize;
        let ranks = quantile_ranks(n, number(&v.input["p"]), number(&v.input["conf"])).unwrap();
        assert_eq!(
            ranks.lower.unwrap() as f64,
            v.want("lower_rank_1based"),
            "{}",
            v.id
        );
        assert_eq!(
            ranks.upper.unwrap() as f64,
            v.want("upper_rank_1based"),
            "{}",
            v.id
        );
        v.near("coverage", ranks.coverage, v.want("coverage"));
    }
}

#[test]
fn quantiles_of_the_t_and_normal_laws() {
    for v in vectors("dist.t.") {
        let df = number(&v.input["df"]);
        for (p, want) in numbers(&v.input["quantile_p"])
            .into_iter()
            .zip(numbers(&v.expected["quantile"]))
        {
            v.near(&format!("quantile {p}"), t_quantile(p, df).unwrap(), want);
        }
    }
    for v in vectors("dist.normal") {
        for (p, want) in numbers(&v.input["quantile_p"])
            .into_iter()
            .zip(numbers(&v.expected["quantile"]))
        {
            v.within(
                &format!("quantile {p}"),
                normal_quantile(p).unwrap(),
                want,
                v.rel,
                1e-15,
            );
        }
        for (x, want) in numbers(&v.input["cdf_x"])
            .into_iter()
            .zip(numbers(&v.expected["cdf"]))
        {
            v.near(&format!("cdf {x}"), normal_cdf(x), want);
        }
    }
}

#[test]
fn the_dip_and_its_p_value() {
    for v in vectors("dip.")
        .into_iter()
        .filter(|v| !v.id.contains("null"))
    {
        let x = v.x();
        let got = dip(&x).unwrap();
        v.near("dip", got.dip, v.want("dip"));
        let replicates = 4000;
        let p = DipNull::simulate(x.len(), replicates, 20)
            .unwrap()
            .p_value(got.dip);
        let want = v.want("p_table_interp");
        // The reference interpolates a table simulated on other numbers; a count of our own
        // replicates errs by its binomial standard error.
        let error = (want * (1.0 - want) / replicates as f64).sqrt();
        v.within(
            "p",
            p,
            want,
            0.0,
            4.0 * error + 2.0 / replicates as f64 + 0.005,
        );
        if v.id != "dip.two_atoms" {
            // Two equal atoms have two equally good modes; elsewhere the interval is unique.
            v.near("mode", got.modal_low, v.want("modal_interval"));
            v.near("mode", got.modal_high, v.want("modal_interval_hi"));
        }
    }
}

#[test]
fn the_null_law_of_the_dip() {
    for v in vectors("dip.null_quantiles.") {
        let n = v.input["n"].as_u64().unwrap() as usize;
        // The vector's tolerance is for a large simulation. A test that takes seconds draws fewer
        // samples, so the error of its own quantile is added: four standard errors, the spacing
        // of the law at the quantile read off the simulation itself.
        let replicates = if n > 500 { 4000 } else { 20_000 };
        let law = DipNull::simulate(n, replicates, 77).unwrap();
        for (p, want) in numbers(&v.input["probs"])
            .into_iter()
            .zip(numbers(&v.expected["quantiles"]))
        {
            let at = |p: f64| quantile(law.dips(), p.clamp(0.0, 1.0), Method::Type7).unwrap();
            let error = 4.0 * (p * (1.0 - p) / replicates as f64).sqrt();
            let slack = (at(p + error) - at(p)).max(at(p) - at(p - error));
            v.within(&format!("quantile {p}"), at(p), want, v.rel, v.abs + slack);
        }
    }
}

fn check_fit(v: &Vector, fit: &Fit, want: &Value) {
    let part = |f: fn(&doe::analysis::mixture::Component) -> f64| -> Vec<f64> {
        fit.components.iter().map(f).collect()
    };
    assert!(fit.converged, "{}", v.id);
    v.near("loglik", fit.log_likelihood, number(&want["loglik"]));
    v.near("bic", fit.bic, number(&want["bic_minus2ll"]));
    assert_eq!(fit.parameters as f64, number(&want["df"]));
    if !want["means"].is_null() {
        v.all_near("means", &part(|c| c.mean), &want["means"]);
        v.all_near("variances", &part(|c| c.sd * c.sd), &want["variances"]);
        v.all_near("weights", &part(|c| c.weight), &want["weights"]);
    }
}

#[test]
fn gaussian_mixtures_against_mclust() {
    for v in vectors("gmm.") {
        let x = v.x();
        check_fit(&v, &fit_one(&x).unwrap(), &v.expected["E1"]);
        let equal = fit_two(&x, Variance::Equal).unwrap().unwrap();
        let free = fit_two(&x, Variance::Free).unwrap().unwrap();
        check_fit(&v, &equal, &v.expected["E2"]);
        // mclust stops its free-variance search early, on a flat top: the likelihood agrees to
        // its tolerance and ours must not be lower; parameters agree to a percent.
        let want = &v.expected["V2"];
        v.near("loglik", free.log_likelihood, number(&want["loglik"]));
        assert!(free.log_likelihood >= number(&want["loglik"]));
        for (k, c) in free.components.iter().enumerate() {
            v.within("mean", c.mean, number(&want["means"][k]), 0.01, 0.0);
            v.within(
                "variance",
                c.sd * c.sd,
                number(&want["variances"][k]),
                0.01,
                0.0,
            );
            v.within("weight", c.weight, number(&want["weights"][k]), 0.01, 0.0);
        }
        let (variance, best) = choose(&x).unwrap().two.unwrap();
        assert_eq!(variance, Variance::Equal);
        assert_eq!(best, equal);
    }
}

#[test]
fn gaussian_mixtures_run_to_rest() {
    for v in vectors("gmm_converged.") {
        let x = v.x();
        let one = fit_one(&x).unwrap();
        check_fit(&v, &one, &v.expected["one"]);
        check_fit(
            &v,
            &fit_two(&x, Variance::Equal).unwrap().unwrap(),
            &v.expected["E2"],
        );
        let free = fit_two(&x, Variance::Free).unwrap().unwrap();
        check_fit(&v, &free, &v.expected["V2"]);
        v.near("ashman", free.ashman_d().unwrap(), v.want("ashman_d_V2"));
        v.near(
            "gain",
            one.bic - free.bic,
            v.want("delta_bic_one_minus_two"),
        );
        assert!(choose(&x).unwrap().prefers_two());
    }
}

#[test]
fn change_points_are_the_optimum() {
    for v in vectors("pelt.") {
        let x = v.x();
        for (case, want) in v.expected.as_object().unwrap() {
            let (kind, least) = case.split_once(".minseg").unwrap();
            let charge = number(&want["penalty"]);
            if kind == "bic_var_mad" {
                v.near("penalty", penalty(&x).unwrap(), charge);
            }
            let got = pelt(&x, charge, least.parse().unwrap()).unwrap();
            let breaks: Vec<f64> = got.breaks.iter().map(|b| *b as f64).collect();
            assert_eq!(
                breaks,
                numbers(&want["breaks_end_exclusive"]),
                "{} {case}",
                v.id
            );
            v.near(case, got.cost, number(&want["total_cost"]));
        }
    }
}

#[test]
fn warm_up_by_mser5() {
    for v in vectors("mser5.") {
        let x = v.x();
        let got = mser(&x, v.input["batch"].as_u64().unwrap() as usize).unwrap();
        v.all_near("statistic", &got.statistic, &v.expected["statistic"]);
        assert_eq!(got.drop as f64, v.want("truncate_observations"), "{}", v.id);
        assert!(got.steady);
        v.near("mean after", got.mean, v.want("mean_after"));
        v.near("mean", mean(&x), v.want("mean_all"));
    }
}

#[test]
fn bootstrap_intervals() {
    for v in vectors("bca.") {
        let x = v.x();
        let p90 = |x: &[f64]| quantile(x, 0.9, Method::Type7).unwrap();
        let run = |resampling| {
            let confidence = number(&v.input["conf"]);
            match v.input["statistic"].as_str().unwrap() {
                "mean" => bootstrap(&x, mean, confidence, resampling).unwrap(),
                "quantile type7 p=0.9" => bootstrap(&x, p90, confidence, resampling).unwrap(),
                other => panic!("unknown statistic {other}"),
            }
        };
        let all = run(Resampling::Exhaustive);
        v.near("theta", all.estimate, v.want("theta"));
        assert_eq!(all.resamples as f64, v.want("n_resamples"));
        v.near("se", all.standard_error, v.want("se_boot"));
        v.near("bias", all.bias, v.want("bias"));
        v.near("z0", all.z0, v.want("z0"));
        v.near("acceleration", all.acceleration, v.want("acceleration"));
        v.all_near(
            "levels",
            &[all.levels.0, all.levels.1],
            &v.expected["alpha_adj"],
        );
        v.all_near("bca", &[all.bca.0, all.bca.1], &v.expected["bca_ci"]);
        v.all_near(
            "percentile",
            &[all.percentile.0, all.percentile.1],
            &v.expected["percentile_ci"],
        );
        v.all_near(
            "basic",
            &[all.basic.0, all.basic.1],
            &v.expected["basic_ci"],
        );
        let some = run(Resampling::Random {
            count: 20_000,
            seed: 8,
        });
        v.within(
            "random se",
            some.standard_error,
            v.want("se_boot"),
            0.02,
            0.0,
        );
        let want = numbers(&v.expected["bca_ci"]);
        v.within("random bca low", some.bca.0, want[0], 0.02, 0.0);
        v.within("random bca high", some.bca.1, want[1], 0.02, 0.0);
    }
}

#[test]
fn adjusted_p_values() {
    for v in vectors("padjust.") {
        let got = benjamini_hochberg(&numbers(&v.input["p"])).unwrap();
        v.all_near("bh", &got, &v.expected["bh"]);
    }
}

#[test]
fn the_bimodality_coefficient() {
    for v in vectors("bimodality_coefficient.") {
        let got = shape(&v.x()).unwrap();
        v.near("skewness", got.skewness, v.want("skew_g1_adjusted"));
        v.near(
            "kurtosis",
            got.excess_kurtosis,
            v.want("excess_kurtosis_g2_adjusted"),
        );
        v.near("coefficient", got.bimodality, v.want("bc_sas"));
    }
}
