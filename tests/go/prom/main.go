// Command promcheck judges a page of metrics, alert rules and dashboards as Prometheus does: by promtool's linter, its parsers and its
// engine. promtool itself would bring the clients of every cloud.
//
// promcheck PAGE [RULES.yaml|DASHBOARD.json]...
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// Of scraping: Prometheus and the PodMonitor add them.
var added = map[string]string{"job": "palisade", "instance": "10.0.0.1:9469", "node": "one", "pod": "palisade-x", "container": "agent"}

// So many samples of each series there are, so far apart.
const (
	samples  = 60
	interval = 15 * time.Second
)

func main() {
	problems, err := check(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "promcheck:", err)
		os.Exit(2)
	}
	for _, problem := range problems {
		fmt.Println(problem)
	}
	if len(problems) > 0 {
		os.Exit(1)
	}
}

func check(files []string) ([]string, error) {
	if len(files) == 0 {
		return nil, fmt.Errorf("usage: promcheck PAGE [RULES.yaml|DASHBOARD.json]...")
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		return nil, err
	}
	page, problems, err := read(text)
	if err != nil {
		return nil, err
	}
	for _, file := range files[1:] {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var found []string
		if strings.HasSuffix(file, ".json") {
			found, err = page.dashboard(content)
		} else {
			found, err = page.rules(content)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, problem := range found {
			problems = append(problems, file+": "+problem)
		}
	}
	return problems, nil
}

// series is one of the page, with its value.
type series struct {
	labels labels.Labels
	value  float64
}

type page struct {
	series []series
	end    time.Time
}

// read parses the page and lints it.
func read(text []byte) (*page, []string, error) {
	textParser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := textParser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return nil, nil, err
	}
	linted, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil {
		return nil, nil, err
	}
	var problems []string
	for _, problem := range linted {
		problems = append(problems, problem.Metric+": "+problem.Text)
	}
	all := &page{end: time.Unix(1_800_000_000, 0)}
	for name, family := range families {
		for _, metric := range family.Metric {
			all.add(name, metric)
		}
	}
	all.put("up", nil, 1)
	return all, problems, nil
}

func (p *page) add(name string, metric *dto.Metric) {
	switch {
	case metric.Counter != nil:
		p.put(name, metric.Label, metric.Counter.GetValue())
	case metric.Gauge != nil:
		p.put(name, metric.Label, metric.Gauge.GetValue())
	case metric.Untyped != nil:
		p.put(name, metric.Label, metric.Untyped.GetValue())
	case metric.Histogram != nil:
		for _, bucket := range metric.Histogram.Bucket {
			p.put(name+"_bucket", metric.Label, float64(bucket.GetCumulativeCount()), "le", fmt.Sprint(bucket.GetUpperBound()))
		}
		p.put(name+"_sum", metric.Label, metric.Histogram.GetSampleSum())
		p.put(name+"_count", metric.Label, float64(metric.Histogram.GetSampleCount()))
	}
}

func (p *page) put(name string, pairs []*dto.LabelPair, value float64, more ...string) {
	all := map[string]string{model.MetricNameLabel: name}
	for key, value := range added {
		all[key] = value
	}
	for _, pair := range pairs {
		all[pair.GetName()] = pair.GetValue()
	}
	for i := 0; i+1 < len(more); i += 2 {
		all[more[i]] = more[i+1]
	}
	p.series = append(p.series, series{labels.FromMap(all), value})
}

func (p *page) rules(content []byte) ([]string, error) {
	groups, errs := rulefmt.Parse(content, false, model.UTF8Validation)
	if len(errs) > 0 {
		return nil, fmt.Errorf("%v", errs)
	}
	var problems []string
	count := 0
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			count++
			for _, problem := range p.query(rule.Expr, false) {
				problems = append(problems, rule.Alert+rule.Record+": "+problem)
			}
			if rule.Alert != "" && (rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" || rule.Labels["severity"] == "") {
				problems = append(problems, rule.Alert+": lacks summary, description or severity")
			}
		}
	}
	if count == 0 {
		problems = append(problems, "no rules")
	}
	return problems, nil
}

// variable is Grafana's.
var variable = regexp.MustCompile(`\$\{?[A-Za-z_]+\}?`)

func (p *page) dashboard(content []byte) ([]string, error) {
	var dashboard any
	if err := json.Unmarshal(content, &dashboard); err != nil {
		return nil, err
	}
	var problems []string
	exprs := find(dashboard, "expr", nil)
	if len(exprs) == 0 {
		problems = append(problems, "no queries")
	}
	for _, expr := range exprs {
		text := strings.NewReplacer("$__rate_interval", "5m", "$__range", "10m", "$__interval", "1m").Replace(expr)
		for _, problem := range p.query(variable.ReplaceAllString(text, ".*"), true) {
			problems = append(problems, expr+": "+problem)
		}
	}
	return problems, nil
}

// find collects the texts under a key, wherever it is.
func find(value any, key string, found []string) []string {
	switch value := value.(type) {
	case map[string]any:
		for name, inner := range value {
			if text, ok := inner.(string); ok && name == key {
				found = append(found, text)
			} else {
				found = find(inner, key, found)
			}
		}
	case []any:
		for _, inner := range value {
			found = find(inner, key, found)
		}
	}
	return found
}

// query says what is wrong with a query: what it selects has to be on the page, and it has to be answered, with something if that is wanted.
func (p *page) query(text string, something bool) []string {
	expr, err := parser.ParseExpr(text)
	if err != nil {
		return []string{err.Error()}
	}
	var problems []string
	names := map[string]bool{}
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			matching := p.matching(selector.LabelMatchers)
			if len(matching) == 0 {
				problems = append(problems, fmt.Sprintf("nothing on the page matches %s", selector))
			}
			for _, its := range matching {
				its.labels.Range(func(label labels.Label) { names[label.Name] = true })
			}
			for _, matcher := range selector.LabelMatchers {
				if !names[matcher.Name] {
					problems = append(problems, fmt.Sprintf("%s has no label %s", selector, matcher.Name))
				}
			}
		}
		return nil
	})
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if aggregate, ok := node.(*parser.AggregateExpr); ok {
			for _, label := range aggregate.Grouping {
				if !names[label] {
					problems = append(problems, fmt.Sprintf("%s groups by %s, which nothing has", aggregate, label))
				}
			}
		}
		return nil
	})
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1 << 24, Timeout: time.Minute, LookbackDelta: 5 * time.Minute})
	defer engine.Close()
	query, err := engine.NewInstantQuery(context.Background(), p, nil, text, p.end)
	if err != nil {
		return append(problems, err.Error())
	}
	defer query.Close()
	result := query.Exec(context.Background())
	if result.Err != nil {
		return append(problems, result.Err.Error())
	}
	if vector, ok := result.Value.(promql.Vector); ok && something && len(vector) == 0 {
		problems = append(problems, "the answer is empty")
	}
	return problems
}

func (p *page) matching(matchers []*labels.Matcher) []series {
	var matching []series
	for _, one := range p.series {
		if all(matchers, func(matcher *labels.Matcher) bool { return matcher.Matches(one.labels.Get(matcher.Name)) }) {
			matching = append(matching, one)
		}
	}
	return matching
}

func all[T any](items []T, holds func(T) bool) bool {
	for _, item := range items {
		if !holds(item) {
			return false
		}
	}
	return true
}

// === storage.Queryable: the page as it would have been scraped for a while, every series growing to what it is ===

func (p *page) Querier(_, _ int64) (storage.Querier, error) { return querier{p}, nil }

type querier struct{ page *page }

func (q querier) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	set := &seriesSet{}
	for _, one := range q.page.matching(matchers) {
		points := make([]chunks.Sample, samples)
		for i := range points {
			at := q.page.end.Add(-time.Duration(samples-1-i) * interval)
			points[i] = sample{at.UnixMilli(), one.value * float64(i+1) / samples}
		}
		set.series = append(set.series, storage.NewListSeries(one.labels, points))
	}
	return set
}

func (querier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, io.ErrUnexpectedEOF
}

func (querier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, io.ErrUnexpectedEOF
}

func (querier) Close() error { return nil }

type seriesSet struct {
	series []storage.Series
	next   int
}

func (s *seriesSet) Next() bool                        { s.next++; return s.next <= len(s.series) }
func (s *seriesSet) At() storage.Series                { return s.series[s.next-1] }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

type sample struct {
	at    int64
	value float64
}

func (s sample) ST() int64                     { return 0 }
func (s sample) T() int64                      { return s.at }
func (s sample) F() float64                    { return s.value }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }
