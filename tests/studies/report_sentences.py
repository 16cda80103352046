"""Made-up report sentences: identifiers stand between « and »; clean ones hold none and must come out as they went in.

Written before the rules of `deidentify_text` were, by the same hand: recall on them flatters. `HELD_OUT` was written
after the rules were done and was not tuned on.
"""

IDENTIFYING = """
Patient: «Jane Doe»
Patient name: «MILLER, ROBERT J»
PATIENT NAME: «Okonkwo Adaeze»    MRN: «00482913»
Name: «Smith, John»  DOB: «04/12/1956»
MRN «4471203», accession «A20193344»
Accession number: «MR-2021-004417»
Acc #: «7736152»
DOB: «12-Mar-1948»
D.O.B. «1948.03.12»
Date of birth: «March 3rd, 1961»
Dictated by «Michael Chen», MD on «03/14/2022» at «14:32».
Dictated by: «Dr. Susan O'Neill»
Electronically signed by «Priya Raman», M.D., Ph.D.
Electronically signed: «Thomas A. Becker MD» «2021-11-04» «08:15»
Signed by «J. Hernandez», DO
Interpreted by: «Lee, Sung-Min MD»
Read by «Dr Williams» and «Dr Patel».
Reviewed with «Prof. Anna Lindqvist».
Transcribed by «kmh» on «5/6/19».
Referring physician: «Gregory House»
Referring Physician: «DR. K. YAMAMOTO»
Ordering provider: «Alice Cooper-Smith», NP
Findings were discussed with «Dr. Mark Weber» by telephone at «3:45 pm» on «June 5, 2020».
Results were communicated to «Nurse Patricia Hill» at the time of dictation.
Findings called to «Emily Clark» at extension «55213».
«Mr. Johnson» presents with new onset seizures.
«Mrs. van der Berg» was positioned supine.
«Ms Garcia» declined contrast.
This is a «93»-year-old woman with falls.
«97 yo» male with subdural haematoma.
Age: «91 years»
Patient aged «102», known dementia.
A «ninety-four»-year-old man with stroke.
Comparison: MRI brain dated «01/15/2019».
Comparison: CT head «2018-07-23».
Compared to the prior study from «July 4, 2017», the lesion has grown.
Compared with «12 Sept 2016» there is no change.
Previous MRI of «3.5.2020» is available.
Prior examination «11/2019» showed oedema.
Surgery was performed on «9 April 2015».
Biopsy on «Feb. 2, 2014» showed glioblastoma.
Radiation completed in «March 2018».
Last seen «20190830».
Study date: «20210412» time «101530».
Exam performed «2020/02/29».
Since «Oct 12» the patient has had headaches.
Follow-up advised after «May 3, 2023».
Call «(555) 123-4567» with questions.
Phone: «555-867-5309»
Tel. «+1 212 555 0187», fax «212-555-0188».
Pager «#4471»
Contact the reading room at «617.555.0143».
Please page «x55102».
Mobile: «+44 7700 900123»
E-mail «jane.doe@example.org» for images.
Images at «https://pacs.example.org/study/8871».
SSN «123-45-6789»
Social security number: «987654321»
NHS number: «943 476 5919»
Account no. «3300912-7»
Visit number: «V00012345»
Case «#882017» reviewed at tumour board.
Study UID «1.2.840.113619.2.55.3.604688119.971.1268071029.320»
Images from «St. Mary's Hospital» were reviewed.
Transferred from «Massachusetts General Hospital».
Prior imaging performed at «Cedar Valley Medical Center».
Seen at the «Mayo Clinic» last week.
«University Hospital Zurich», Department of Neuroradiology
«Royal Free London NHS Foundation Trust»
Institution: «Northside Imaging Center»
Address: «742 Evergreen Terrace, Springfield, IL 62704»
The patient lives at «12 Baker Street».
«45 West 57th Street», New York
Resident of «221B Elm Avenue».
Sent to «P.O. Box 1123».
His wife «Margaret» reports confusion.
Her daughter, «Anna», accompanied her.
The patient, «Jane Doe», was scanned at 3 T.
«Jennifer Lopez-Ruiz» was scanned without sedation.
Radiologist: «Samuel Osei»
Attending: «R. Gupta», MD
Technologist: «B. Nguyen» RT(R)(MR)
cc: «Dr. Helen Fischer»
Copy to «Dr. A. B. Carter», Neurology
/s/ «Harold Finch»
Verified by «FINCH, HAROLD» on «2017-02-11T09:30:00».
Approved by: «h.finch»
Patientin: «Müller, Hannelore»
Name: «Schröder», Vorname: «Karl-Heinz», geb. «03.05.1941»
Patient «Herr Schmidt», geb. am «12.11.1950», wurde am «4. März 2021» untersucht.
«Frau Dr. Weiß» wurde telefonisch informiert.
Sehr geehrter «Herr Kollege Hartmann»,
Voruntersuchung vom «23.08.2019» zum Vergleich.
Im Vergleich zum «14. Dezember 2018» unverändert.
Befundet von «Dr. med. Klaus Ziegler»
Diktiert von: «OA Dr. Brandt»
Überweiser: «Dr. Sabine Köhler»
Fallnummer «20211234»
Patienten-ID: «P0048812»
Tel.: «0221 / 478-12345»
«Hauptstraße 15», «50667 Köln»
«Universitätsklinikum Heidelberg», Abteilung für Neuroradiologie
«Klinikum Großhadern»
gez. «Prof. Dr. Wagner»
Mit freundlichen Grüßen «Dr. Vogel»
«Mme Dupont» née le «7 février 1952».
Patient : «Lefèvre Marie»
Nom : «MARTIN» Prénom : «Sophie»
Examen du «15 août 2020» comparé à celui du «3 janv. 2019».
«M. Bernard» a été examiné le «12/06/2021».
Médecin prescripteur : «Dr Moreau»
Dicté par «Claire Fontaine»
«CHU de Bordeaux»
«Hôpital Saint-Louis», service de radiologie
Tél. «01 44 55 66 77»
«18 rue de la Paix», «75002 Paris»
IPP : «8001234567»
Paciente: «García López, María»
Nombre: «José Fernández»
Fecha de nacimiento: «3 de mayo de 1947»
Estudio del «21 de septiembre de 2020».
«Sra. Rodríguez» refiere cefalea.
«Dr. Álvarez» informado el «14-02-2022».
NHC: «554433»
DNI «12345678Z»
Comparado con RM de «enero de 2019».
Firmado por «Lucía Torres»
«Hospital Universitario La Paz»
Teléfono: «912 345 678»
Calle «Mayor 12», Madrid
Her number is «+49 221 4781234».
Joindre le patient au «01 44 55 66 77».
No progression since «March».
Compared to the scan, the study on «12/05» is worse.
A man born in «1934».
Her number is «123-45-6789» as on file.
Practice in «Springfield, IL 62704».
Discussed with «Aisha Rahman» at noon.
""".strip().splitlines()

CLEAN = """
No acute intracranial haemorrhage, mass effect or midline shift.
There is a 12 x 8 x 5 mm enhancing lesion in the left frontal lobe.
The lesion measures 2.3 cm in greatest dimension, previously 1.9 cm.
Mild chronic small vessel ischaemic change, Fazekas grade 1.
Fazekas 3 white matter disease.
Dilated Virchow-Robin spaces in the basal ganglia.
Chiari I malformation with tonsillar descent of 8 mm.
Arnold-Chiari malformation is not seen.
Dandy-Walker variant.
T2 hyperintense lesion at L4/L5 with moderate canal stenosis.
Disc bulge at L5/S1 contacts the S1 nerve root.
C5/6 and C6/7 foraminal narrowing, grade 2.
T1 weighted images before and after 10 ml of gadolinium.
FLAIR hyperintensities, T2/FLAIR mismatch sign positive.
WHO grade 4 glioma is the leading diagnosis.
Grade 3/5 weakness of the left arm.
Power is 4/5 in the right leg and 5/5 elsewhere.
Motor strength improved from 3/5 to 4/5.
Enhancing nodule of 4-5 mm, unchanged.
TR 2000, TE 30, TI 900, flip angle 12.
b values of 0, 500 and 1000 s/mm2 were acquired.
ADC values of 0.6 x 10-3 mm2/s.
Slice thickness 1.5 mm, 176 slices, matrix 256 x 256.
CT head without contrast, 5 mm slices.
The patient is a 54-year-old man with headache.
67 yo female with breast cancer.
A 5 month old infant with macrocephaly.
89-year-old woman after a fall.
Patient: 61-year-old man with seizures.
Hounsfield units of 35 to 60 in the collection.
Attenuation of -80 HU, consistent with fat.
The third and lateral ventricles are normal in size, Evans index 0.27.
Normal flow voids in the circle of Willis.
Sylvian fissure and Rolandic cortex are normal.
Wallerian degeneration of the corticospinal tract.
Meckel's cave and Gasserian ganglion are normal.
Rathke cleft cyst of 6 mm.
Multiple sclerosis by the 2017 McDonald criteria.
MS. Brain lesions are stable.
MR Brain shows no restricted diffusion.
MR angiography of the circle of Willis was unremarkable.
DR chest shows clear lungs.
Alzheimer disease is possible given hippocampal atrophy, Scheltens score 2.
Parkinson disease, Hoehn and Yahr stage 3.
Creutzfeldt-Jakob disease cannot be excluded.
Findings suggest Wernicke encephalopathy.
Bell palsy with enhancement of the facial nerve.
Sturge-Weber syndrome with left pial angiomatosis.
Von Hippel-Lindau disease with cerebellar haemangioblastoma.
Tarlov cyst at S2.
Modic type 1 changes at L4.
Schmorl nodes at T11 and T12.
Baker cyst behind the knee.
Klippel-Feil anomaly at C2/C3.
Guillain-Barré syndrome.
Brown-Séquard syndrome.
Moyamoya vessels, Suzuki stage 4.
Spetzler-Martin grade 2 arteriovenous malformation.
Hunt and Hess grade 3, Fisher grade 4.
Pfirrmann grade 4 degeneration of L5/S1.
White matter is normal.
May represent a small meningioma.
The mass may be a schwannoma.
Findings may reflect demyelination, less likely vasculitis.
In March fractures no symptoms are expected.
Marked oedema and mild mass effect.
Long segment signal change from C3 to T2.
Brown tumour of hyperparathyroidism.
Young patient with Grave prognosis.
Will discuss at the tumour board.
Impression: No acute abnormality.
Findings: The ventricles are normal.
Technique: Axial T1, T2 and FLAIR images were acquired.
Comparison: None.
Comparison: No prior studies.
Recommend follow-up in 6 months.
Follow-up MRI in 3-6 months is advised.
Symptoms began 3 days ago.
Stroke in 2015 with residual deficit.
Known glioma since 2018.
Status post resection in 2019, no recurrence.
12 of 15 lesions have grown.
3 new lesions, 2 of them enhancing.
The ratio is 2:1.
Signal to noise ratio of 30:1.
Midline shift of 4 mm to the right.
Infarct in the territory of the left MCA, ASPECTS 8.
NIHSS 14 on admission.
GCS 3/15.
Left vertebral artery dominant, 50% stenosis of the right ICA, NASCET criteria.
Aneurysm of 7 x 5 mm at the A1/A2 junction.
PICA and AICA are patent.
Spinal cord compression at T4-T6.
Anterolisthesis of L4 on L5, Meyerding grade 1.
Bone age of 12 years by Greulich and Pyle.
BI-RADS 4, ACR density C.
PI-RADS 3 lesion in the transition zone.
LI-RADS 5 observation in segment 7.
Lung-RADS 2 nodule of 5 mm.
TNM stage T2 N1 M0.
Ki-67 index of 20%.
IDH-mutant, 1p/19q-codeleted oligodendroglioma.
MGMT promoter methylated, EGFR amplified.
SUVmax 12.4.
Dose length product 945 mGy cm.
Gadobutrol 7.5 mmol was given intravenously.
Patient positioned supine, head first.
The patient tolerated the procedure well.
Emergency Department notified.
Discussed with Neurosurgery and the Stroke Team.
Reviewed in the Neuroradiology Conference.
Department of Radiology
Images from an outside hospital are not available.
Referred by the outpatient clinic.
Kein Nachweis einer intrakraniellen Blutung.
M. Parkinson bekannt, M. Alzheimer nicht auszuschließen.
Mikroangiopathische Marklagerläsionen, Fazekas Grad 2.
Der M. psoas ist unauffällig.
Bandscheibenvorfall in Höhe LWK 4/5 links.
HWK 5/6: Spondylarthrose und Foramenstenose.
Die Raumforderung misst 14 x 11 mm.
Unauffällige Darstellung der Hypophyse.
Z. n. Infarkt im Stromgebiet der A. cerebri media.
Pas de lésion expansive intracrânienne.
Hypersignaux T2 de la substance blanche, Fazekas 2.
Discopathie L4-L5 avec protrusion discale.
Le ventricule mesure 12 mm de diamètre.
Patient de 54 ans avec céphalées.
Sin evidencia de hemorragia intracraneal.
Lesión de 15 mm en el lóbulo frontal izquierdo.
Paciente de 45 años con cefalea.
Mar cada hiperintensidad en T2 se valora de nuevo.
""".strip().splitlines()

HELD_OUT = """
Pt name «Abernathy, Louise K.» seen in clinic
Patient: «Nguyen Van Thanh», male
RE: «Walter Kowalski»
I saw «Mr and Mrs Thornton» today.
Thank you for referring «Mrs Edwards».
«Prof Sir Alan Bishop» agrees with the findings.
Case reviewed together with «Dr Ahmed El-Sayed».
Wet read by «Stephanie Brooks», PGY-3
Report status: final. «K. Nakamura», M.D.
Dictating: «S. Vance MD» Attending: «O. Petrov MD»
Findings were relayed to «Dr. Iqbal» at «16:05» on «8/9/2021».
Discussed with «Laura Simmons» in the emergency department.
Comparison is made to the MRI of «22 February 2016».
MRI from «02.11.17» shows the same.
Interval resection on «Aug 14th, 2018».
No change from «9/3/15».
Previous exams: «2014-05-06», «2015-06-11» and «2017-01-30».
Scanned Tuesday «4 June 2019».
The exam of «6-17-2020» was non-diagnostic.
Admission date «30JUN2019».
Hospital number «H778812»
Accession «CT21-0045523»
MRN: «55-43-21»
Record «#0098123»
Patient ID = «JX-99812»
Questions? Call «1-800-555-0199».
Reach me on «07700 900 456».
Contact: «r.singh@hospital.nhs.uk»
A «101»-year-old man fell.
The patient is «92» years old.
«95F» with stroke.
Imaging done at «Riverside Community Hospital» was reviewed.
Outside CT from «Lakeland Regional Medical Center»
Patient was transferred from «Sunnybrook».
Lives at «9 Orchard Close, Leeds».
Home address: «1600 Amphitheatre Parkway»
Her brother «Tobias» was present.
«Rosemary Kent» returned for follow-up.
Der Patient «Uwe Krämer» klagt über Schwindel.
Untersuchung am «07.09.2022», Voraufnahmen vom «1.2.2020».
Zuweisung durch «Dr. Petra Lang», «Bahnhofstraße 3», «80335 München».
«Klinikum rechts der Isar»
Rückfragen unter «089 4140-2211».
Madame «Sylvie Rousseau», «93» ans, chute.
Comparaison avec le scanner du «11 mars 2021».
Compte rendu validé par le «Dr Lambert».
Doña «Pilar Núñez», revisión.
Informe firmado por «Dra. Elena Vidal» el «2 de octubre de 2021».
Hospital «Clínic de Barcelona», servicio de radiología
Nº de historia: «998877»
""".strip().splitlines()

CLEAN_HELD_OUT = """
The pituitary gland measures 7 mm in height and enhances homogeneously.
Small focus of susceptibility in the right thalamus, likely a microbleed.
Multiple periventricular lesions perpendicular to the corpus callosum, Dawson fingers.
Two foci of enhancement, the largest 6 mm.
Left parietal infarct, unchanged since 2019.
Hippocampal volumes are at the 25th percentile for age.
Mesial temporal sclerosis, ILAE type 1.
Type II odontoid fracture with 3 mm displacement.
Chance fracture of L1.
Jefferson fracture of C1.
Cobb angle of 23 degrees between T5 and L1.
Severe stenosis at L3/L4, Schizas grade D.
Torg-Pavlov ratio of 0.7.
The ACOM aneurysm was coiled, Raymond-Roy class 1.
Broca area is displaced by the tumour.
Choline to NAA ratio of 2.1 at TE 144.
Perfusion shows rCBV 3.5 times that of normal white matter.
Cerebral blood flow below 30% in 12 ml, Tmax above 6 s in 48 ml.
Post-contrast SPACE and MPRAGE at 1 mm isotropic.
EPI distortion limits the frontal base.
Siemens Prisma 3 T, 64 channel coil.
GE Discovery 750W, software version DV26.
kVp 120, mAs 250, pitch 0.8.
CTDIvol 45.2 mGy.
Iohexol 350 at 4 ml/s, total 80 ml.
Serum creatinine 88 umol/l, eGFR 72.
The left internal carotid artery is occluded from C1 to C7.
Fetal origin of the right posterior cerebral artery.
Vein of Galen and straight sinus are patent.
Trolard vein on the right.
Thrombus in the vein of Labbe.
Cavum septum pellucidum et vergae, a normal variant.
Empty sella, 4 mm optic nerve sheaths.
Blake pouch cyst.
Lhermitte-Duclos disease is a differential.
Possible Susac syndrome.
Marchiafava-Bignami disease.
Hallervorden-Spatz pattern, eye of the tiger sign.
Leigh syndrome in a 2-year-old boy.
Rasmussen encephalitis with right hemiatrophy.
Lennox-Gastaut syndrome.
Gleason score 3+4=7.
Deauville score 4.
EDSS 3.5.
mRS 2 at 90 days.
May need biopsy.
March in place gait was not tested.
No August or autumn pattern.
Patient is status post left craniotomy.
Patient Motion degrades the images.
Patient was scanned head first.
Neurosurgery was notified.
Called to the stroke team.
Signed consent was obtained.
Read in conjunction with the CT.
Reviewed with the referring team.
Performed under general anaesthesia.
Zeitgerechte Myelinisierung, kein Anhalt für Heterotopie.
Kontrastmittel: 7 ml Gadovist.
Name der Sequenz: MPRAGE
L'examen montre une atrophie de grade 2.
Absence de rehaussement après 10 ml de Dotarem.
Hernia discal L5-S1 de 6 mm.
No se observan lesiones captantes.
""".strip().splitlines()
