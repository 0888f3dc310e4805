{{- define "finetune-operator.chartName" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "finetune-operator.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "finetune-operator.chartName" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "finetune-operator.reportName" -}}
{{ include "finetune-operator.name" . }}-report
{{- end -}}

{{- define "finetune-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "finetune-operator.name" .) -}}
{{- else -}}
{{- required "serviceAccount.name is needed with serviceAccount.create=false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "finetune-operator.selector" -}}
app.kubernetes.io/name: {{ include "finetune-operator.chartName" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of all objects. A label has no "+", as Flux adds to a version with the digest of the chart: 0.1.0+6fba8c802ca4. */}}
{{- define "finetune-operator.labels" -}}
{{- $own := dict
  "app.kubernetes.io/version" (.Chart.AppVersion | toString)
  "app.kubernetes.io/managed-by" .Release.Service
  "app.kubernetes.io/part-of" .Chart.Name
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimAll "-_.") -}}
{{- toYaml (merge (include "finetune-operator.selector" . | fromYaml) $own .Values.commonLabels) -}}
{{- end -}}

{{/* Reference of an image: (list VALUES ROOT). */}}
{{- define "finetune-operator.image" -}}
{{- $image := index . 0 -}}
{{- $root := index . 1 -}}
{{- $registry := $root.Values.global.imageRegistry | default $image.registry -}}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{/* Names of pull secrets, given as names or as {name: x}: a list of both, as JSON. */}}
{{- define "finetune-operator.secretNames" -}}
{{- $names := list -}}
{{- range . -}}
{{- $names = append $names (kindIs "string" . | ternary . (get (kindIs "string" . | ternary dict .) "name")) -}}
{{- end -}}
{{- toJson ($names | uniq) -}}
{{- end -}}

{{- define "finetune-operator.monitorMetadata" -}}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "finetune-operator.labels" . | nindent 2 }}
  {{- with .Values.monitors.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.monitors.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Port of the operator's metrics; that of the probes unless they are protected. */}}
{{- define "finetune-operator.metricsPort" -}}
{{- ternary 8444 8080 .Values.metrics.secure -}}
{{- end -}}

{{- define "finetune-operator.metricsPortName" -}}
{{- ternary "metrics" "http" .Values.metrics.secure -}}
{{- end -}}

{{/* Fields of a monitor's endpoint that the values set. */}}
{{- define "finetune-operator.scrape" -}}
interval: {{ .Values.monitors.interval }}
{{- with .Values.monitors.scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
{{- with .Values.monitors.metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
